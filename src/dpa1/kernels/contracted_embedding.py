"""The embedding net and the contraction of its features in one: see ``embedding`` and ``contracted``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dpa1.kernels import compiled_density, density, dispatch, embedding, reference
from dpa1.kernels.contracted import contract
from dpa1.kernels.density import supports
from dpa1.kernels.embedding_net import parts
from dpa1.kernels.reference import DenseLayer

__all__ = ["run", "supports"]
DENSITIES = ((dispatch.COMPILED_DENSITY, compiled_density.COMPILED), (dispatch.DENSITY, density.TORCH))


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """``reference.contracted_embedding``, twice differentiable in all floating-point arguments."""
    net = parts(radial, pair, table, layers)
    nodes = embedding.training_nodes(net, *(path for path, _ in DENSITIES), dispatch.INTERPOLATED)
    if nodes is not None and density.worthwhile(nodes, radial.shape[1]):
        for path, passes in DENSITIES:
            if dispatch.holds(path, net.s.dtype, "cpu"):
                return density.contracted(passes, net, nodes, rows)
    value, slope = embedding.with_slope(net, nodes)
    value = value.view(*radial.shape, -1)
    if slope is None:
        return reference.contraction(value, rows)
    return contract(radial, value, slope.view_as(value), rows)
