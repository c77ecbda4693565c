"""Splines from tables on a CUDA device: sums of six rows without the derivative of the values in memory.

Fast sibling of ``reference.spline``. The weights of the rows come from ``dpa1.kernels.table``, as do the derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dpa1.kernels import table as splines
from dpa1.kernels.gpu.common import dense

PLACES, COLUMNS = 32, 64  # of one tile


def supports(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> bool:
    """Tables that are constants."""
    return splines.supports(place, row, tables)


def run(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``reference.spline``, differentiable in ``place`` to any order."""
    return splines.evaluate(TILES, place, row, tables)


@triton.jit
def _sum(table, weights, first, at, columns, n, width, ORDER: tl.constexpr):
    inside = (at[:, None] < n) & (columns[None, :] < width)
    total = tl.load(table + first[:, None] * width + columns[None, :], mask=inside, other=0.0)
    total *= tl.load(weights + at * ORDER, mask=at < n, other=0.0)[:, None]
    for m in range(1, ORDER):
        here = tl.load(table + (first[:, None] + m) * width + columns[None, :], mask=inside, other=0.0)
        total += here * tl.load(weights + at * ORDER + m, mask=at < n, other=0.0)[:, None]
    return total


@triton.jit
def _values(row, weights, table, out, n, width, ORDER: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    columns = tl.program_id(1) * C + tl.arange(0, C)
    first = tl.load(row + at, mask=at < n, other=0)
    total = _sum(table, weights, first, at, columns, n, width, ORDER)
    inside = (at[:, None] < n) & (columns[None, :] < width)
    tl.store(out + at[:, None] * width + columns[None, :], total, mask=inside)


@triton.jit
def _along(row, weights, table, grad, out, n, width, ORDER: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    first = tl.load(row + at, mask=at < n, other=0)
    total = tl.load(weights + at * ORDER, mask=at < n, other=0.0) * 0.0
    for start in range(0, width, C):
        columns = start + tl.arange(0, C)
        inside = (at[:, None] < n) & (columns[None, :] < width)
        bar = tl.load(grad + at[:, None] * width + columns[None, :], mask=inside, other=0.0)
        total += tl.sum(bar * _sum(table, weights, first, at, columns, n, width, ORDER), axis=1)
    tl.store(out + at, total, mask=at < n)


def _launch_values(row: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    row, weights, table = dense(row, weights, table)
    out = weights.new_empty(len(row), table.shape[1])
    if out.numel():
        grid = (triton.cdiv(len(row), PLACES), triton.cdiv(table.shape[1], COLUMNS))
        _values[grid](row, weights, table, out, *out.shape, ORDER=splines.ORDER, B=PLACES, C=COLUMNS)
    return out


def _launch_along(row: Tensor, weights: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    row, weights, table, grad = dense(row, weights, table, grad)
    out = weights.new_zeros(len(row))
    if grad.numel():
        grid = (triton.cdiv(len(row), PLACES),)
        _along[grid](row, weights, table, grad, out, *grad.shape, ORDER=splines.ORDER, B=PLACES, C=COLUMNS)
    return out


TILES = splines.Sums(_launch_values, _launch_along)
