"""The embedding net with its derivative by the distance carried along, for tanh.

Fast sibling of ``reference.embedding``. Every pair's features G depend on one number s beside its types, so their
derivative G' = dG/ds is as large as G and costs one more forward pass. Then a force needs no backward pass through the
net, s̄ = Ḡ·G', and a force loss only one, from the cotangents of G and G' together. In a training step with many pairs of
few kinds, G and G' come from a spline through the net's values (``interpolated``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpa1.kernels import dispatch, interpolated
from dpa1.kernels.embedding_net import Attach, Net, Parts, parts, supports
from dpa1.kernels.nodes import Grid, Nodes, make_grid
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import step_grid

__all__ = ["run", "supports", "training_grid", "training_nodes", "with_slope"]


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """``reference.embedding``, twice differentiable in all floating-point arguments."""
    net = parts(radial, pair, table, layers)
    value, _ = with_slope(net, training_nodes(net, dispatch.INTERPOLATED))
    return value.view(*radial.shape, -1)


def training_nodes(net: Parts, *paths: dispatch.Path) -> Nodes | None:
    """Where a training step may evaluate splines instead of the net, for paths of which one at least must hold."""
    grid = step_grid()
    if grid is None or not _derive(net):
        return None
    return grid.place(net) if any(dispatch.holds(path, net.s.dtype, "cpu") for path in paths) else None


def training_grid(
    low: float,
    high: float,
    pairs: int,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    like: Tensor,
) -> Grid | None:
    """Splines that serve a whole training step: so many ``pairs``, each of a row of ``table``, inputs within the bounds.

    like: gives the precision. None where the net is to be evaluated otherwise.
    """
    s = like.new_tensor([low, high])
    if not supports(s, pair, table, layers, activation) or like.device.type != "cpu":
        return None
    paths = dispatch.COMPILED_DENSITY, dispatch.DENSITY, dispatch.INTERPOLATED
    if not any(dispatch.holds(path, s.dtype, "cpu") for path in paths):
        return None
    return make_grid(parts(s, pair, table, layers), low, high, pairs)


def with_slope(net: Parts, nodes: Nodes | None) -> tuple[Tensor, Tensor | None]:
    """G (P, C), and where it is to be differentiated by s its derivative G' by it; from splines where there are nodes."""
    if nodes is not None and dispatch.holds(dispatch.INTERPOLATED, net.s.dtype, "cpu"):
        return interpolated.features(net, nodes)
    value, slope = Net.apply(net.repeats, _derive(net), net.pair, net.s, net.types, *net.weights)
    return (value if slope is None else Attach.apply(net.s, value, slope)), slope


def _derive(net: Parts) -> bool:
    return torch.is_grad_enabled() and net.s.requires_grad
