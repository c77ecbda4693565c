"""One gated self-attention layer over each atom's neighbours (arXiv 2208.08236, Eqs. 6–10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpa1.config.model import ModelConfig
from dpa1.kernels import reference
from dpa1.model.networks import Dense
from dpa1.model.rows import Rows


class NeighborAttention(nn.Module):
    """G ← LayerNorm(G + W_out·(P·V)), with P the attention weights gated by the angle between neighbours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, channels = config.attention_width, config.embedding[-1]
        self.config = config
        self.temperature = (
            config.temperature if config.temperature is not None else 1.0 / math.sqrt(width * config.scaling)
        )
        self.project_in = Dense(channels, 3 * width, "linear")
        self.project_out = Dense(width, channels, "linear")
        self.norm_scale = nn.Parameter(torch.ones(channels), requires_grad=config.layer_norm_trainable)
        self.norm_offset = nn.Parameter(torch.zeros(channels), requires_grad=config.layer_norm_trainable)

    def forward(self, features: Tensor, rows: Rows, gate: Tensor | None) -> Tensor:
        """features (N, K, C), gate (N, K, K) or None → (N, K, C)."""
        query, key, value = self.project_in(features).chunk(3, dim=-1)
        if self.config.normalize:
            query, key, value = (functional.normalize(x, dim=-1, eps=1e-12) for x in (query, key, value))
        scores = (query * self.temperature) @ key.transpose(-1, -2)
        if self.config.convention == "smooth":
            weights = reference.smooth_attention_weights(scores, rows.weight)
        else:
            weights = reference.deepmd_attention_weights(
                scores, rows.weight, rows.mask, rows.empty_slots, self.config.smooth_attention
            )
        if gate is not None:
            weights = weights * gate
        return self._norm(features + self.project_out(weights @ value))

    def phantom(self, features: Tensor) -> Tensor:
        """The same layer for an empty slot (deepmd convention): it attends to nothing, so only the output bias remains."""
        assert self.project_out.bias is not None
        return self._norm(features + self.project_out.bias)

    def _norm(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.norm_scale, self.norm_offset, self.config.layer_norm_eps)
