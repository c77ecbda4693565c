"""Tabulated features contracted with the environment matrix, some atoms at a time.

Fast sibling of ``reference.contracted_spline``. The features of all pairs are never written to memory: each of both passes
forms those of a few atoms, which stay in the processor's cache, and reduces them at once,

    P = Rᵀ S(x)      R̄ = S P̄ᵀ      x̄_j = Σ_a R_ja Σ_c P̄_ac S'_jc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpa1.kernels.table import spline_sums, spline_values, spline_weights

ELEMENTS = 131_072


def supports(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> bool:
    """A table that is constant."""
    return not table.requires_grad


class Passes(NamedTuple):
    """How P is formed from place, row (N, K), table (R, C) and rows (N, K, 4), and x̄ and R̄ from P̄ and the same."""

    contract: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    differentiate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def run(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """``reference.contracted_spline``, twice differentiable in ``place`` and ``rows``."""
    return contracted(TORCH, place, row, table, rows)


def contracted(passes: Passes, place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """The same, by certain passes."""
    product: Tensor = _Contracted.apply(passes, place, row, table, rows)
    return product.transpose(1, 2)


class _Contracted(torch.autograd.Function):
    """P (N, 4, C)."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        ctx.passes = passes
        ctx.save_for_backward(place, row, table, rows)
        return passes.contract(place, row, table, rows)

    @staticmethod
    def backward(ctx: Any, *product_bar: Tensor) -> tuple[Tensor | None, ...]:
        differentiate = _cotangents if torch.is_grad_enabled() else ctx.passes.differentiate
        place_bar, rows_bar = differentiate(product_bar[0], *ctx.saved_tensors)
        return None, place_bar, None, None, rows_bar


def _contract(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    weights = spline_weights(0, place.reshape(-1)).view(*place.shape, -1)
    product = rows.new_empty(len(rows), rows.shape[2], table.shape[1])
    for some in _few(place, table):
        torch.bmm(rows[some].transpose(1, 2), spline_sums(row[some], table, weights[some])[0], out=product[some])
    return product


def _differentiate(
    product_bar: Tensor, place: Tensor, row: Tensor, table: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    bar = product_bar.contiguous().transpose(1, 2)  # the order in which small products are fast
    weights, slopes = (spline_weights(d, place.reshape(-1)).view(*place.shape, -1) for d in (0, 1))
    along, rows_bar = torch.empty_like(rows), torch.empty_like(rows)
    for some in _few(place, table):
        slope, value = spline_sums(row[some], table, slopes[some], weights[some])
        torch.bmm(slope, bar[some], out=along[some])
        torch.bmm(value, bar[some], out=rows_bar[some])
    return (rows * along).sum(-1), rows_bar


TORCH = Passes(_contract, _differentiate)


def _cotangents(product_bar: Tensor, place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same, differentiable in place and rows."""
    bar = product_bar.contiguous().transpose(1, 2)
    slope, value = (spline_values(d, place, row, table) for d in (1, 0))
    return (rows * torch.bmm(slope, bar)).sum(-1), torch.bmm(value, bar)


def _few(place: Tensor, table: Tensor) -> Iterator[slice]:
    size = max(1, ELEMENTS // max(1, place.shape[1] * table.shape[1]))
    for start in range(0, len(place), size):
        yield slice(start, start + size)
