"""An attention layer whose queries, keys and values are given, with compiled loops between its products.

Fast sibling of ``reference.projected_layer``: ``projected`` with the passes of ``compiled_attention``.
"""

from __future__ import annotations

from torch import Tensor

from dpa1.compiled import available
from dpa1.kernels import projected
from dpa1.kernels.compiled_attention import COMPILED
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, Keys


def supports(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> bool:
    """What ``projected`` does."""
    return projected.supports(features, query, key, value, keys, weights, options) and available()


def run(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> Tensor:
    """``reference.projected_layer``, differentiable in features, queries, keys, values and ``keys``."""
    return projected.layer(COMPILED, features, query, key, value, keys, weights, options)
