"""Quintic B-splines from tables: how to make them from values, and a fast evaluation.

Fast sibling of ``reference.spline``: each value is one weighted sum of six neighbouring rows, which is what torch's
``embedding_bag`` computes with vector instructions. Derivatives of any order are such sums with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DEGREE = 5
ORDER = DEGREE + 1
CHUNK_ELEMENTS = 131_072  # of one block of values: stays in the processor's cache
GPU_ELEMENTS = 1 << 28  # the same on a GPU, where a block only bounds memory


def supports(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> bool:
    """Tables that are constants."""
    return not any(table.requires_grad for table in tables)


class Sums(NamedTuple):
    """How weighted sums of six rows are formed: both take the first row of each place (P,), weights (P, 6) and a table (R, C)."""

    values: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Σ_m w_m T[row + m]: (P, C)."""
    along: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Its products with (P, C), summed over channels: (P,)."""


def run(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``reference.spline``, differentiable in ``place`` to any order."""
    return evaluate(BAGS, place, row, tables)


def evaluate(sums: Sums, place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same, by sums formed in a certain way."""
    values = _Values.apply(sums, 0, place.reshape(-1), row.reshape(-1), *tables)
    return tuple(value.view(*place.shape, value.shape[1]) for value in values)


def spline_values(derivative: int, place: Tensor, row: Tensor, table: Tensor) -> Tensor:
    """The d-th derivative of S (N, K, C) at every place (N, K), differentiable in it."""
    (found,) = _Values.apply(BAGS, derivative, place.reshape(-1), row.reshape(-1), table)
    return found.view(*place.shape, -1)


def spline_sums(row: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Σ_m w_m T[row + m] (N, K, C) for rows (N, K) and each of some weights (N, K, 6); on a CPU."""
    places = row.numel()
    first, six, offsets = row.reshape(-1, 1), _six(), _offsets(places)
    taken = (first + six).view(-1)
    return tuple(
        functional.embedding_bag(taken, table, offsets, mode="sum", per_sample_weights=w.reshape(-1)).view(
            *row.shape, -1
        )
        for w in weights
    )


@cache
def _six() -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(ORDER)


@lru_cache(maxsize=16)
def _offsets(places: int) -> Tensor:
    """Where the six rows of each place begin."""
    with torch.inference_mode(False):
        return torch.arange(0, ORDER * places, ORDER)


@cache
def _polynomials() -> np.ndarray:
    """(6, 6, 6): [d, k, m] coefficient of t^k in the d-th derivative of the weight m, with t = fraction − 1/2."""
    from scipy.interpolate import BSpline

    knots = np.arange(-DEGREE, ORDER + 1, dtype=np.float64)
    t = np.linspace(-0.5, 0.5, ORDER)
    values = BSpline(knots, np.eye(ORDER), DEGREE)(t + 0.5)
    first = np.linalg.solve(np.vander(t, increasing=True), values)
    out = [first]
    for _ in range(DEGREE):
        out.append(np.concatenate([out[-1][1:] * np.arange(1, ORDER)[:, None], np.zeros((1, ORDER))]))
    return np.stack(out)


@cache
def polynomials(derivative: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(6 − d, 6): [k, m] coefficient of (place − 1/2)^k in the d-th derivative of the weight m.

    Sent to a device once: within a CUDA graph nothing can be.
    """
    with torch.inference_mode(False):
        return torch.from_numpy(_polynomials()[derivative, : ORDER - derivative]).to(device, dtype)


def spline_weights(derivative: int, place: Tensor) -> Tensor:
    """(P, 6) derivatives of the six weights at ``place`` (P,)."""
    if derivative > DEGREE:
        return place.new_zeros(len(place), ORDER)
    t = place - 0.5
    powers = [torch.ones_like(t), t]
    while len(powers) < ORDER - derivative:
        powers.append(powers[-1] * t)
    return torch.stack(powers[: ORDER - derivative], -1) @ polynomials(derivative, place.dtype, place.device)


def _rows(row: Tensor) -> Tensor:
    """(P, 6) rows of each place."""
    return row.unsqueeze(-1) + torch.arange(ORDER, device=row.device)


def _bag(rows: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _chunks(places: int, width: int, device: torch.device) -> Iterator[slice]:
    size = max(64, (CHUNK_ELEMENTS if device.type == "cpu" else GPU_ELEMENTS) // max(width, 1))
    for start in range(0, places, size):
        yield slice(start, start + size)


def _bag_values(row: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    rows, out = _rows(row), weights.new_empty(len(row), table.shape[1])
    for c in _chunks(len(row), table.shape[1], row.device):
        out[c] = _bag(rows[c], table, weights[c])
    return out


def _bag_along(row: Tensor, weights: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    rows, out = _rows(row), weights.new_empty(len(row))
    for c in _chunks(len(row), table.shape[1], row.device):
        out[c] = torch.linalg.vecdot(_bag(rows[c], table, weights[c]), grad[c])
    return out


BAGS = Sums(_bag_values, _bag_along)


class _Values(torch.autograd.Function):
    """The d-th derivative of S at every place."""

    @staticmethod
    def forward(
        ctx: Any, sums: Sums, derivative: int, place: Tensor, row: Tensor, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.sums, ctx.derivative, ctx.tables = sums, derivative, tables
        ctx.save_for_backward(place, row)
        weights = spline_weights(derivative, place)
        return tuple(sums.values(row, weights, table) for table in tables)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        place, row = ctx.saved_tensors
        slope = _Slope.apply(ctx.sums, ctx.derivative + 1, len(grads), place, row, *grads, *ctx.tables)
        return (None, None, slope, None, *(None for _ in ctx.tables))


class _Slope(torch.autograd.Function):
    """Σ over tables and channels of a cotangent times the d-th derivative of S: (P,)."""

    @staticmethod
    def forward(ctx: Any, sums: Sums, derivative: int, count: int, place: Tensor, row: Tensor, *rest: Tensor) -> Tensor:
        grads, tables = rest[:count], rest[count:]
        ctx.sums, ctx.derivative, ctx.tables = sums, derivative, tables
        ctx.save_for_backward(place, row, *grads)
        weights = spline_weights(derivative, place)
        out = torch.zeros_like(place)
        for grad, table in zip(grads, tables, strict=True):
            out += sums.along(row, weights, table, grad)
        return out

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        place, row, *grads = ctx.saved_tensors
        column = along[0].unsqueeze(-1)
        values = _Values.apply(ctx.sums, ctx.derivative, place, row, *ctx.tables)
        slope = along[0] * _Slope.apply(ctx.sums, ctx.derivative + 1, len(grads), place, row, *grads, *ctx.tables)
        tables = (None for _ in ctx.tables)
        return (None, None, None, slope, None, *(column * value for value in values), *tables)


def coefficients(nodes: np.ndarray) -> np.ndarray:
    """B-spline coefficients (n, C) of values (n, C) at equally spaced nodes, which they interpolate.

    S at node i is Σ_m B_m(0)·T[i − 2 + m]: an interval [i, i + 1] uses the rows i − 2 … i + 3. Within ``MARGIN`` nodes of
    the ends the spline is that of scipy's not-a-knot condition and not for use.
    """
    from scipy.interpolate import make_interp_spline

    return np.ascontiguousarray(make_interp_spline(np.arange(len(nodes), dtype=np.float64), nodes, DEGREE).c)


MARGIN = 12  # nodes at each end of which the rows serve as support only: end conditions have died away there
