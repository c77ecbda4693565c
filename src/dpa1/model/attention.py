"""One gated self-attention layer over each atom's neighbours (arXiv 2208.08236, Eqs. 6–10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dpa1.config.model import ModelConfig
from dpa1.kernels import dispatch, reference
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, Keys, Projected
from dpa1.model.networks import Dense
from dpa1.model.rows import Rows

EMPTY_SCORE = -20.0  # DeePMD-kit's shift of smooth attention scores; an empty slot scores exactly this


def make_keys(config: ModelConfig, rows: Rows) -> Keys:
    """The convention's key weights and gate: where the two conventions of attention differ, they differ here."""
    direction = rows.direction if config.gate else None
    if config.convention == "smooth":
        return Keys(rows.weight, rows.weight, None, direction, torch.ones_like(rows.empty_slots))
    weight = rows.mask.to(rows.weight.dtype)
    if config.smooth_attention:
        return Keys(weight, rows.weight, rows.weight, direction, rows.empty_slots, EMPTY_SCORE, scaled=True)
    # Only real neighbours; the 1 keeps a row without any of them finite.
    return Keys(weight, weight, weight, direction, (~rows.mask.any(-1)).to(weight.dtype))


class NeighborAttention(nn.Module):
    """G ← LayerNorm(G + W_out·(P·V)), with P the attention weights gated by the angle between neighbours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, channels = config.attention_width, config.embedding[-1]
        temperature = config.temperature if config.temperature is not None else 1.0 / math.sqrt(width * config.scaling)
        self.options = AttentionOptions(config.normalize, temperature, config.layer_norm_eps)
        self.project_in = Dense(channels, 3 * width, "linear")
        self.project_out = Dense(width, channels, "linear")
        self.norm_scale = nn.Parameter(torch.ones(channels), requires_grad=config.layer_norm_trainable)
        self.norm_offset = nn.Parameter(torch.zeros(channels), requires_grad=config.layer_norm_trainable)

    def forward(self, features: Tensor, keys: Keys, projected: Projected | None = None) -> Tensor:
        """features (n, K, C) → (n, K, C). ``projected`` saves the layer computing ``project(features)``."""
        if projected is not None:
            return dispatch.projected_layer(features, *projected, keys, self.weights(), self.options)
        return dispatch.attention_layer(features, keys, self.weights(), self.options)

    def project(self, features: Tensor) -> Projected:
        """Queries (the temperature included), keys and values of features (n, K, C), each (n, K, W)."""
        return reference.project(features, self.weights(), self.options)

    def weights(self) -> AttentionWeights:
        """Its parameters as the kernels take them."""
        into, out = self.project_in, self.project_out
        assert into.bias is not None
        assert out.bias is not None
        return AttentionWeights(into.weight, into.bias, out.weight, out.bias, self.norm_scale, self.norm_offset)

    def phantom(self, features: Tensor) -> Tensor:
        """The same layer for an empty slot (deepmd convention): it attends to nothing, only the output bias remains."""
        assert self.project_out.bias is not None
        return reference.layer_norm(
            features + self.project_out.bias, self.norm_scale, self.norm_offset, self.options.eps
        )
