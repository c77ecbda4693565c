"""Pair features contracted through the density of neighbours on nodes: in a training step without attention.

Fast sibling of ``reference.training_contraction``, see ``nodes``. With G = Σ_m B_m T[i + m] the contraction is

    P_a = Σ_j R_ja G_j = Σ_r A_ar T_r = Σ_r C_ar E_r    A_ar = Σ_(j, m: i_j + m = r) R_ja B_m(u_j)
                                                        C_ar = Σ_(q ≤ r) A_aq    E_r = T_r − T_(r+1),  E_last = T_last,

a small dense product: the features of pairs, which fill most of the memory and time of a step, are never formed. What comes
from and goes to a pair are 6 × 4 numbers each of A and of C,

    R̄_ja = Σ_m B_m Ā_ar    s̄_j = − Σ_am R_ja W_m C̄_ar / h    C̄ = P̄ Eᵀ    Ā_ar = Σ_q C̄_aq − Σ_(q < r) C̄_aq,

with the weights W of ``slope_weights``. The sum by parts keeps the slopes exact: from differences of rounded Ā, which
many nodes make small, s̄ would lose one or two digits in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import dispatch, embedding_net
from dpa1.kernels.embedding_net import Parts, parts
from dpa1.kernels.nodes import Nodes, place_nodes, slope_weights
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import ORDER, spline_sums, spline_weights
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

WIDEST = 16  # rows of the table per neighbour slot beyond which the features themselves are contracted faster


def supports(*arguments: Any) -> bool:
    """Whatever the rows, what the embedding net supports."""
    return embedding_net.supports(*arguments[:-1])


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """``reference.training_contraction``, however few the pairs are."""
    net = parts(radial, pair, table, layers)
    found = place_nodes(net, saving=0)
    assert found is not None
    return contracted(net, found, rows)


def worthwhile(found: Nodes, slots: int) -> bool:
    """Whether the density of an atom with so many neighbour slots is small enough."""
    return len(found.table) <= WIDEST * slots


def contracted(net: Parts, found: Nodes, rows: Tensor) -> Tensor:
    """(N, C, 4) features contracted with ``rows`` (N, K, 4)."""
    steps, slots = _steps(found).to(rows.dtype), rows.shape[1]
    first = found.row + len(steps) * torch.arange(len(rows)).repeat_interleave(slots)
    cumulative = _Cumulative.apply(net.s, rows, first, found.place, found.step, found.count, len(steps))
    product = dispatch.linear(cumulative.transpose(1, 2).reshape(4 * len(rows), len(steps)), steps, None)
    return product.view(len(rows), 4, -1).transpose(1, 2)


def _steps(found: Nodes) -> Tensor:
    """E (rows, C) in float64."""
    table = found.table.view(-1, found.count, found.table.shape[1])
    return torch.cat([table[:, :-1] - table[:, 1:], table[:, -1:]], 1).flatten(0, 1)


def _density(first: Tensor, weights: Tensor, values: Tensor, rows: int) -> Tensor:
    """(rows, 4): the weights (P, 6) times values (P, 4), summed at the six rows from ``first`` (P,) on."""
    # scipy's sparse product takes a fifth of the time of torch's scattered sums.
    from scipy.sparse import csc_array

    pairs = len(first)
    kind = torch.int32 if ORDER * max(pairs, rows) < 2**31 else torch.int64
    places = first.to(kind).unsqueeze(1) + torch.arange(ORDER, dtype=kind)
    starts = torch.arange(0, ORDER * pairs + 1, ORDER, dtype=kind)
    matrix = csc_array((weights.view(-1).numpy(), places.view(-1).numpy(), starts.numpy()), shape=(rows, pairs))
    return torch.from_numpy(matrix @ values.numpy())


class _Cumulative(torch.autograd.Function):
    """C (N, rows, 4)."""

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, rows: Tensor, first: Tensor, place: Tensor, step: float, count: int, total: int
    ) -> Tensor:
        weight, slope = spline_weights(0, place), slope_weights(place) / -step
        ctx.count = count
        ctx.save_for_backward(rows, first, weight, slope)
        density = _density(first, weight, rows.view(-1, 4), len(rows) * total)
        return density.view(-1, count, 4).cumsum_(1).view(len(rows), total, 4)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if not geometry_wanted():
            return (None,) * 7
        if torch.is_grad_enabled() and parameters_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        return *_Slopes.apply(cotangents[0].contiguous(), ctx.count, *ctx.saved_tensors), *(None,) * 5


class _Slopes(torch.autograd.Function):
    """(s̄, R̄) from C̄ (N, rows, 4), differentiable by C̄."""

    @staticmethod
    def forward(
        ctx: Any, bar: Tensor, count: int, rows: Tensor, first: Tensor, weight: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.shape = len(bar) * bar.shape[1] // count, count, 4
        ctx.save_for_backward(rows, first, weight, slope)
        cumulative = bar.view(ctx.shape).cumsum(1).view(-1, 4)
        last = first - first % count + count - 1  # row of the same kind of pairs
        rows_bar = cumulative.index_select(0, last) - spline_sums(first - 1, cumulative, weight)[0]
        (along,) = spline_sums(first, bar.view(-1, 4), slope)
        return (along * rows.view(-1, 4)).sum(-1), rows_bar.view_as(rows)

    @staticmethod
    def backward(ctx: Any, s_bar: Tensor, rows_bar: Tensor) -> tuple[Tensor | None, ...]:
        rows, first, weight, slope = ctx.saved_tensors
        if torch.is_grad_enabled() or geometry_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        total = math.prod(ctx.shape[:2])
        out = _density(first, weight, rows_bar.reshape(-1, 4), total).view(ctx.shape).cumsum_(1)
        out += _density(first, slope, s_bar.unsqueeze(-1) * rows.view(-1, 4), total).view(ctx.shape)
        return out.view(len(rows), -1, 4), *(None,) * 5
