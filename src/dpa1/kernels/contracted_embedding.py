"""The embedding net and the contraction of its features in one: see ``embedding`` and ``contracted``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dpa1.kernels import density, dispatch, embedding, reference
from dpa1.kernels.contracted import contract
from dpa1.kernels.embedding_net import parts
from dpa1.kernels.nodes import place_nodes
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import in_training_step


def supports(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> bool:
    """What ``embedding`` supports."""
    return embedding.supports(radial, pair, table, layers, activation)


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """``reference.contracted_embedding``, twice differentiable in all floating-point arguments."""
    if in_training_step() and radial.requires_grad and dispatch.holds(dispatch.DENSITY, radial.dtype, "cpu"):
        net = parts(radial, pair, table, layers)
        nodes = place_nodes(net)
        if nodes is not None and density.worthwhile(nodes, radial.shape[1]):
            return density.contracted(net, nodes, rows)
    value, slope = embedding.with_slope(radial, pair, table, layers)
    if slope is None:
        return reference.contraction(value, rows)
    return contract(radial, value, slope, rows)
