"""The embedding net between nodes: in a training step, G and G' of many pairs from splines through a few values.

Fast sibling of ``reference.training_embedding``, see ``nodes``. G and G' are weighted sums of six rows of tables, and the
gradient of a loss goes back to the tables by such sums, too:

    T̄[r] = Σ_(pairs, m: i + m = r) B_m Ḡ
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpa1.kernels.embedding_net import Attach, Parts, parts, supports
from dpa1.kernels.nodes import Nodes, place_nodes, slope_weights
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import ORDER, spline_sums, spline_weights
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

__all__ = ["features", "run", "supports"]


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """``reference.training_embedding``, however few the pairs are."""
    net = parts(radial, pair, table, layers)
    found = place_nodes(net, saving=0)
    assert found is not None
    return features(net, found)[0].view(*radial.shape, -1)


def features(net: Parts, found: Nodes) -> tuple[Tensor, Tensor]:
    """(G, G') (P, C) of all pairs."""
    dtype = net.s.dtype
    value, slope = _Between.apply(net.s, found.place, found.row, found.table.to(dtype), found.slopes().to(dtype))
    return Attach.apply(net.s, value, slope), slope


class _Between(torch.autograd.Function):
    """(G, G') at ``place`` within the interval of ``row``. G's own dependence on s is left to ``Attach``.

    s itself stands among the inputs so that whoever asks for the derivative of G' by it is told.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, place: Tensor, row: Tensor, table: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        weights = spline_weights(0, place), slope_weights(place)
        ctx.rows = len(table)
        ctx.save_for_backward(row, *weights)
        return spline_sums(row, table, weights[0]) + spline_sums(row, slopes, weights[1])

    @staticmethod
    def backward(ctx: Any, value_bar: Tensor | None, slope_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        row, *weights = ctx.saved_tensors
        if torch.is_grad_enabled() and not parameters_wanted():
            return (None,) * 5  # of a force: the way to s is that of ``Attach``
        if torch.is_grad_enabled() or (geometry_wanted() and slope_bar is not None):
            raise NotImplementedError("a training step asks for no such derivative of the embedding net")
        return None, None, None, *_gather(row, ctx.rows, weights, (value_bar, slope_bar))


def _gather(
    row: Tensor, rows: int, weights: Sequence[Tensor], bars: Sequence[Tensor | None]
) -> Iterator[Tensor | None]:
    """For each w (P, 6) and x (P, C) the (R, C) sums over pairs and m of w_m x with row + m = r."""
    order = row.argsort(stable=True)
    count = torch.bincount(row, minlength=rows)
    first = count.cumsum(0) - count
    # A bag for every m and row: the pairs whose interval begins there.
    taken = order.repeat(ORDER)
    bags = (first + len(row) * torch.arange(ORDER).unsqueeze(1)).view(-1)
    for w, x in zip(weights, bars, strict=True):
        if x is None:
            yield None
            continue
        sums = functional.embedding_bag(
            taken, x.contiguous(), bags, mode="sum", per_sample_weights=w[order].t().reshape(-1)
        ).view(ORDER, rows, -1)  # fmt: skip
        out = sums[0]
        for m in range(1, ORDER):
            out[m:] += sums[m, :-m]
        yield out
