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
from dpa1.kernels.nodes import Nodes, place_nodes
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import in_training_step

__all__ = ["run", "supports", "training_nodes", "with_slope"]


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
    """Where a training step may evaluate the net instead of at every pair, for paths of which one at least must hold."""
    if not (in_training_step() and _derive(net)):
        return None
    usable = [dispatch.holds(path, net.s.dtype, "cpu") for path in paths]
    return place_nodes(net) if any(usable) else None


def with_slope(net: Parts, nodes: Nodes | None) -> tuple[Tensor, Tensor | None]:
    """G (P, C), and where it is to be differentiated by s its derivative G' by it; from splines where there are nodes."""
    if nodes is not None and dispatch.holds(dispatch.INTERPOLATED, net.s.dtype, "cpu"):
        return interpolated.features(net, nodes)
    value, slope = Net.apply(net.repeats, _derive(net), net.pair, net.s, net.types, *net.weights)
    return (value if slope is None else Attach.apply(net.s, value, slope)), slope


def _derive(net: Parts) -> bool:
    return torch.is_grad_enabled() and net.s.requires_grad
