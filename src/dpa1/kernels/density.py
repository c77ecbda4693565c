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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpa1.kernels import dispatch, embedding_net
from dpa1.kernels.embedding_net import Parts, parts
from dpa1.kernels.nodes import Nodes, place_nodes, slope_weights
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import ORDER, spline_sums, spline_weights
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

WIDEST = 16  # rows of the table per neighbour slot beyond which the features themselves are contracted faster


class Where(NamedTuple):
    """The places of pairs: first row (N, K) and place u (N, K) in tables of ``total`` rows, ``kind_rows`` of each kind, h apart."""

    first: Tensor
    place: Tensor
    step: float
    kind_rows: int
    total: int


class Passes(NamedTuple):
    """How the sums are formed."""

    cumulative: Callable[[Tensor, Where], Tensor]
    """C (N, 4, total) from R (N, K, 4)."""
    slopes: Callable[[Tensor, Tensor, Where], tuple[Tensor, Tensor]]
    """s̄ (N, K) and R̄ (N, K, 4) from C̄ and R."""
    turned: Callable[[Tensor, Tensor, Tensor, Where], Tensor]
    """The cotangent of C̄ (N, 4, total) from those of s̄ (N, K) and R̄ (N, K, 4), and from R."""


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
    return run_with(TORCH, radial, pair, table, layers, rows)


def run_with(
    passes: Passes,
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    rows: Tensor,
) -> Tensor:
    """The same, by certain passes."""
    net = parts(radial, pair, table, layers)
    found = place_nodes(net, saving=0)
    assert found is not None
    return contracted(passes, net, found, rows)


def worthwhile(found: Nodes, slots: int) -> bool:
    """Whether the density of an atom with so many neighbour slots is small enough."""
    return len(found.table) <= WIDEST * slots


def contracted(passes: Passes, net: Parts, found: Nodes, rows: Tensor) -> Tensor:
    """(N, C, 4) features contracted with ``rows`` (N, K, 4)."""
    steps, slots = _steps(found).to(rows.dtype), rows.shape[:2]
    where = Where(found.row.view(slots), found.place.view(slots), found.step, found.count, len(steps))
    cumulative = _Cumulative.apply(passes, net.s, rows, where)
    product = dispatch.linear(cumulative.flatten(0, 1), steps, None)
    return product.view(len(rows), 4, -1).transpose(1, 2)


def _steps(found: Nodes) -> Tensor:
    """E (rows, C) in float64."""
    table = found.table.view(-1, found.count, found.table.shape[1])
    return torch.cat([table[:, :-1] - table[:, 1:], table[:, -1:]], 1).flatten(0, 1)


class _Cumulative(torch.autograd.Function):
    """C (N, 4, rows of the table)."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, s: Tensor, rows: Tensor, where: Where) -> Tensor:
        ctx.passes, ctx.where = passes, where
        ctx.save_for_backward(rows)
        return passes.cumulative(rows, where)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if not geometry_wanted():
            return (None,) * 4
        if torch.is_grad_enabled() and parameters_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        return None, *_Slopes.apply(ctx.passes, cotangents[0].contiguous(), *ctx.saved_tensors, ctx.where), None


class _Slopes(torch.autograd.Function):
    """(s̄, R̄) from C̄, differentiable by C̄."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, bar: Tensor, rows: Tensor, where: Where) -> tuple[Tensor, Tensor]:
        ctx.passes, ctx.where = passes, where
        ctx.save_for_backward(rows)
        s_bar, rows_bar = passes.slopes(bar, rows, where)
        return s_bar.flatten(), rows_bar

    @staticmethod
    def backward(ctx: Any, s_bar: Tensor, rows_bar: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        if torch.is_grad_enabled() or geometry_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        return None, ctx.passes.turned(s_bar.view(rows.shape[:2]), rows_bar, rows, ctx.where), None, None


def _cumulative(rows: Tensor, where: Where) -> Tensor:
    first, weight, _ = _weights(where)
    return _summed(_density(first, weight, rows, where), where)


def _slopes(bar: Tensor, rows: Tensor, where: Where) -> tuple[Tensor, Tensor]:
    first, weight, slope = _weights(where)
    bar = bar.transpose(1, 2)
    cumulative = bar.reshape(-1, where.kind_rows, 4).cumsum(1).view(-1, 4)
    last = first - first % where.kind_rows + where.kind_rows - 1  # row of the same kind of pairs
    rows_bar = cumulative.index_select(0, last) - spline_sums(first - 1, cumulative, weight)[0]
    (along,) = spline_sums(first, bar.reshape(-1, 4), slope)
    return (along.view_as(rows) * rows).sum(-1), rows_bar.view_as(rows)


def _turned(s_bar: Tensor, rows_bar: Tensor, rows: Tensor, where: Where) -> Tensor:
    first, weight, slope = _weights(where)
    out = _summed(_density(first, weight, rows_bar, where), where)
    out += _density(first, slope, s_bar.unsqueeze(-1) * rows, where).view(len(rows), -1, 4).transpose(1, 2)
    return out


TORCH = Passes(_cumulative, _slopes, _turned)


def _weights(where: Where) -> tuple[Tensor, Tensor, Tensor]:
    """First rows (P,) with the tables of all atoms one after the other, weights of the values and of the slopes (P, 6)."""
    place = where.place.reshape(-1)
    first = where.first + where.total * torch.arange(len(where.first)).unsqueeze(1)
    return first.reshape(-1), spline_weights(0, place), slope_weights(place) / -where.step


def _density(first: Tensor, weights: Tensor, values: Tensor, where: Where) -> Tensor:
    """(rows, 4): the weights (P, 6) times values (N, K, 4), summed at the six rows from ``first`` (P,) on."""
    # scipy's sparse product takes a fifth of the time of torch's scattered sums.
    from scipy.sparse import csc_array

    pairs, rows = len(first), len(values) * where.total
    kind = torch.int32 if ORDER * max(pairs, rows) < 2**31 else torch.int64
    places = first.to(kind).unsqueeze(1) + torch.arange(ORDER, dtype=kind)
    starts = torch.arange(0, ORDER * pairs + 1, ORDER, dtype=kind)
    matrix = csc_array((weights.view(-1).numpy(), places.view(-1).numpy(), starts.numpy()), shape=(rows, pairs))
    return torch.from_numpy(matrix @ values.reshape(-1, 4).numpy())


def _summed(density: Tensor, where: Where) -> Tensor:
    """(N, 4, total): the sum of each row (rows, 4) and those before it of its kind."""
    return density.view(-1, where.kind_rows, 4).cumsum_(1).view(-1, where.total, 4).transpose(1, 2).contiguous()
