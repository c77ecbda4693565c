"""One gated self-attention layer over each atom's neighbours (arXiv 2208.08236, Eqs. 6–10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpa1.config.model import ModelConfig
from dpa1.kernels import dispatch, reference
from dpa1.model.networks import Dense
from dpa1.model.rows import Rows

EMPTY_SCORE = -20.0  # DeePMD-kit's shift of smooth attention scores; an empty slot scores exactly this


@dataclass(frozen=True)
class Keys:
    """What all attention layers of one block share.

    Attributes
    ----------
    weight: (n, K) factor on each key's exponential, 0 in empty slots.
    gate: (n, K, K) factor on each attention weight, including the key's ``weight``.
    pair_weight: (n, K, K) sw_i·sw_j of DeePMD-kit's smooth attention, else None.
    null_count, null_score: the term in the denominator that is no neighbour, see ``reference.gated_attention``.
    """

    weight: Tensor
    gate: Tensor
    pair_weight: Tensor | None
    null_count: Tensor
    null_score: float


def make_keys(config: ModelConfig, rows: Rows) -> Keys:
    """The convention's key weights and gate: where the two conventions of attention differ, they differ here."""
    pair_weight, null_score = None, 0.0
    if config.convention == "smooth":
        weight, factor = rows.weight, rows.weight.unsqueeze(-2)
        null_count = torch.ones_like(rows.empty_slots)
    elif config.smooth_attention:
        weight = rows.mask.to(rows.weight.dtype)
        factor = pair_weight = rows.weight.unsqueeze(-1) * rows.weight.unsqueeze(-2)
        null_count, null_score = rows.empty_slots, EMPTY_SCORE
    else:
        weight = rows.mask.to(rows.weight.dtype)
        factor = weight.unsqueeze(-1) * weight.unsqueeze(-2)
        # Only real neighbours; the 1 keeps a row without any of them finite.
        null_count = (~rows.mask.any(-1)).to(weight.dtype)
    if config.gate:
        gate = (rows.direction @ rows.direction.transpose(-1, -2)) * factor
    else:
        gate = factor.expand(*rows.mask.shape, rows.mask.shape[-1])
    return Keys(weight, gate, pair_weight, null_count, null_score)


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

    def forward(self, features: Tensor, keys: Keys) -> Tensor:
        """features (n, K, C) → (n, K, C)."""
        query, key, value = self.project_in(features).chunk(3, dim=-1)
        if self.config.normalize:
            query, key, value = reference.unit(query), reference.unit(key), reference.unit(value)
        query = query * self.temperature
        bounded = self.config.normalize and abs(self.temperature) <= 20.0
        if bounded and keys.pair_weight is None:
            attended = dispatch.gated_attention(query, key, value, keys.weight, keys.gate, keys.null_count)
        else:
            scores = query @ key.transpose(-1, -2)
            if keys.pair_weight is not None:
                scores = (scores - EMPTY_SCORE) * keys.pair_weight + EMPTY_SCORE
            attended = reference.gated_attention(
                scores, value, keys.weight, keys.gate, keys.null_count, keys.null_score, bounded
            )
        return self._norm(features + self.project_out(attended))

    def phantom(self, features: Tensor) -> Tensor:
        """The same layer for an empty slot (deepmd convention): it attends to nothing, only the output bias remains."""
        assert self.project_out.bias is not None
        return self._norm(features + self.project_out.bias)

    def _norm(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.norm_scale, self.norm_offset, self.config.layer_norm_eps)
