"""The hot operations of DPA-1 in plain torch: this file is their definition.

Equation numbers refer to DPA-1, arXiv 2208.08236. Shapes: N centre atoms, K neighbour slots, C channels.
A slot without a neighbour has ``mask`` False, switch 0 and an all-zero environment row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def switch(distance: Tensor, start: float, cutoff: float) -> Tensor:
    """Smooth cutoff weight: 1 below ``start`` Å, 0 from ``cutoff`` Å on, twice continuously differentiable.

    1 + u³(−6u² + 15u − 10) with u = (r − start)/(cutoff − start); the smoothed 1/r of Eq. 3 is switch(r)/r.
    """
    u = ((distance - start) / (cutoff - start)).clamp(0.0, 1.0)
    return 1.0 + u**3 * (u * (15.0 - 6.0 * u) - 10.0)


def environment_matrix(vectors: Tensor, weight: Tensor, distance: Tensor, protection: float) -> Tensor:
    """Rows sw·(1/r, x/r², y/r², z/r²) of the environment matrix (Eq. 2), r protected by ``+ protection``.

    vectors (N, K, 3) Å; weight, distance (N, K). Returns (N, K, 4).
    """
    inverse = 1.0 / (distance + protection)
    radial = weight * inverse
    return torch.cat([radial.unsqueeze(-1), vectors * (radial * inverse).unsqueeze(-1)], dim=-1)


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) over the last dimension."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp(min=1e-24))


def gated_attention(
    scores: Tensor, value: Tensor, weight: Tensor, gate: Tensor, null_count: Tensor, null_score: float, bounded: bool
) -> Tensor:
    """Σ_j P_ij·gate_ij·v_j with P_ij = exp(A_ij) / (n₀·exp(A₀) + Σ_k w_k·exp(A_ik)); the key weights w_j are part of gate.

    The null term n₀·exp(A₀) stands for whatever is not a neighbour. In the smooth convention w is the switch and
    n₀ = 1, A₀ = 0, so a key fades out continuously at the cutoff; in DeePMD-kit's, n₀ counts empty slots.

    scores (N, K, K), rows are queries; value (N, K, C); weight (N, K); gate (N, K, K); null_count (N,).
    ``bounded`` promises |scores| ≤ 40, where exp needs no shift. Returns (N, K, C).
    """
    null = null_count[:, None, None]
    if bounded:
        exponentials = torch.exp(scores)
        null = null * math.exp(null_score)
    else:
        # An empty slot's score is meaningless and may be huge: it must set neither the shift nor an exponential.
        scores = scores.masked_fill((weight == 0.0).unsqueeze(-2), float("-inf"))
        top = scores.detach().amax(-1, keepdim=True)
        top = torch.where(null > 0.0, top.clamp(min=null_score), top)
        exponentials = torch.exp(scores - top)
        null = torch.where(null > 0.0, null * torch.exp(null_score - top), 0.0)
    denominator = null + exponentials @ weight.unsqueeze(-1)
    # Dividing the (N, K, C) result costs less than dividing the (N, K, K) weights.
    return ((exponentials * gate) @ value) * denominator.reciprocal()


def layer_norm(x: Tensor, scale: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension with the biased variance."""
    return functional.layer_norm(x, x.shape[-1:], scale, offset, eps)


def contraction(features: Tensor, rows: Tensor) -> Tensor:
    """M = Gᵀ R over the neighbours (Eq. 11, before its division). features (N, K, C), rows (N, K, 4) → (N, C, 4)."""
    return features.transpose(-1, -2) @ rows


def descriptor_product(matrix: Tensor, axis: int) -> Tensor:
    """D = M · (M[:axis])ᵀ, flattened row-major. matrix (N, C, 4) → (N, C·axis)."""
    return (matrix @ matrix[:, :axis].transpose(-1, -2)).flatten(1)
