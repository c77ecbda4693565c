"""Pair features contracted through the density of neighbours on nodes: in a training step without attention.

Fast sibling of ``reference.training_contraction``, see ``nodes``. With G = Σ_m B_m T[i + m] the contraction is

    P_a = Σ_j R_ja G_j = Σ_r A_ar T_r,    A_ar = Σ_(j, m: i_j + m = r) R_ja B_m(u_j),

a small dense product: the features of pairs, which fill most of the memory and time of a step, are never formed. What comes
from and goes to a pair are the 6 × 4 numbers of A it touches,

    R̄_ja = Σ_m B_m Ā_ar    s̄_j = Σ_am R_ja B_m' Ā_ar / h,    Ā = P̄ Tᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import dispatch, embedding_net
from dpa1.kernels.embedding_net import Parts, parts
from dpa1.kernels.nodes import Nodes, place_nodes
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import ORDER, spline_weights
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
    table, slots = found.table.to(rows.dtype), rows.shape[1]
    first = found.row + len(table) * torch.arange(len(rows)).repeat_interleave(slots)
    places = (4 * first).unsqueeze(1) + torch.arange(ORDER * 4)
    density = _Density.apply(net.s, rows, found.place, places, found.step, len(table))
    product = dispatch.linear(density.transpose(1, 2).reshape(4 * len(rows), len(table)), table, None)
    return product.view(len(rows), 4, -1).transpose(1, 2)


def _spread(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, rows, 4): the sum of values (P, 6, 4) at their places (P, 24) of all numbers."""
    out = values.new_zeros(*shape)
    out.view(-1).scatter_add_(0, places.view(-1), values.view(-1))
    return out


class _Density(torch.autograd.Function):
    """A (N, rows, 4)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, rows: Tensor, place: Tensor, places: Tensor, step: float, count: int) -> Tensor:
        weight, slope = spline_weights(0, place).unsqueeze(-1), (spline_weights(1, place) / step).unsqueeze(-1)
        ctx.save_for_backward(rows, places, weight, slope)
        return _spread(weight * rows.view(-1, 1, 4), places, (len(rows), count, 4))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if not geometry_wanted():
            return (None,) * 6
        if torch.is_grad_enabled() and parameters_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        return *_Slopes.apply(cotangents[0].contiguous(), *ctx.saved_tensors), None, None, None, None


class _Slopes(torch.autograd.Function):
    """(s̄, R̄) from Ā (N, rows, 4), differentiable by Ā."""

    @staticmethod
    def forward(
        ctx: Any, density_bar: Tensor, rows: Tensor, places: Tensor, weight: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.shape = density_bar.shape
        ctx.save_for_backward(rows, places, weight, slope)
        # The six rows of four numbers lie one after the other.
        windows = density_bar.as_strided((density_bar.numel() - ORDER * 4 + 1, ORDER * 4), (1, 1))
        touched = windows.index_select(0, places[:, 0]).view(-1, ORDER, 4)
        rows_bar = (touched * weight).sum(1)
        s_bar = ((touched * slope).sum(1) * rows.view(-1, 4)).sum(-1)
        return s_bar, rows_bar.view_as(rows)

    @staticmethod
    def backward(ctx: Any, s_bar: Tensor, rows_bar: Tensor) -> tuple[Tensor | None, ...]:
        rows, places, weight, slope = ctx.saved_tensors
        if torch.is_grad_enabled() or geometry_wanted():
            raise NotImplementedError("a training step asks for no such derivative of the density")
        values = weight * rows_bar.reshape(-1, 1, 4)
        values.addcmul_(slope, (s_bar.unsqueeze(-1) * rows.view(-1, 4)).unsqueeze(1))
        return _spread(values, places, ctx.shape), None, None, None, None
