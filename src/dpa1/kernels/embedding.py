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
from dpa1.kernels.embedding_net import Attach, Net, parts
from dpa1.kernels.nodes import place_nodes
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import in_training_step


def supports(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> bool:
    """tanh, a bias everywhere, no learned timestep, no residual around the first layer."""
    plain = all(layer.bias is not None and layer.timestep is None for layer in layers)
    return activation is torch.tanh and plain and layers[0].repeats == 0


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """``reference.embedding``, twice differentiable in all floating-point arguments."""
    return with_slope(radial, pair, table, layers)[0]


def with_slope(
    radial: Tensor, pair: Tensor | None, table: Tensor | None, layers: Sequence[DenseLayer]
) -> tuple[Tensor, Tensor | None]:
    """``run`` (n, K, C), and where it is to be differentiated by ``radial`` its derivative G' by it."""
    found = parts(radial, pair, table, layers)
    s, index, types, repeats, weights = found
    derive = torch.is_grad_enabled() and radial.requires_grad
    if derive and in_training_step() and dispatch.holds(dispatch.INTERPOLATED, s.dtype, "cpu"):
        nodes = place_nodes(found)
        if nodes is not None:
            value, slope = (x.view(*radial.shape, -1) for x in interpolated.features(found, nodes))
            return value, slope
    value, slope = Net.apply(repeats, derive, index, s, types, *weights)
    if not derive:
        return value.view(*radial.shape, -1), None
    value = Attach.apply(s, value, slope)
    return value.view(*radial.shape, -1), slope.view(*radial.shape, -1)
