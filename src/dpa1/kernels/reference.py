"""The hot operations of DPA-1 in plain torch: this file is their definition.

Equation numbers refer to DPA-1, arXiv 2208.08236. Shapes: N centre atoms, K neighbour slots, C channels.
A slot without a neighbour has ``mask`` False, switch 0 and an all-zero environment row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PHANTOM_SCORE = -20.0  # DeePMD-kit's shift of smooth attention scores; an empty slot scores exactly this


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


def smooth_attention_weights(scores: Tensor, weight: Tensor) -> Tensor:
    """Attention weights P_ij = sw_j·exp(A_ij) / (1 + Σ_k sw_k·exp(A_ik)): a key that leaves at the cutoff fades out.

    The 1 is an always-present null key of score 0, so that few or vanishing neighbours leave P bounded.
    scores (N, K, K); weight (N, K), 0 in empty slots. Returns (N, K, K), rows are queries.
    """
    top = scores.detach().amax(-1, keepdim=True).clamp(min=0.0)
    keys = weight.unsqueeze(-2) * torch.exp(scores - top)
    return keys / (torch.exp(-top) + keys.sum(-1, keepdim=True))


def deepmd_attention_weights(scores: Tensor, weight: Tensor, mask: Tensor, empty_slots: Tensor, smooth: bool) -> Tensor:
    """DeePMD-kit's softmax over ``sel`` slots, computed from the real ones.

    smooth: scores (A+20)·sw_i·sw_j − 20, each empty slot adds exp(−20) to the denominator, result times sw_i·sw_j.
    otherwise: softmax over real neighbours.
    scores (N, K, K); weight (N, K); mask (N, K) real neighbours; empty_slots (N,). Returns (N, K, K).
    """
    if not smooth:
        scores = scores.masked_fill(~mask.unsqueeze(-2), float("-inf"))
        # A row of an atom without real neighbours would be all −inf.
        scores = scores.masked_fill(~mask.any(-1)[:, None, None], 0.0)
        return torch.softmax(scores, dim=-1) * mask.unsqueeze(-1)
    pair_weight = weight.unsqueeze(-1) * weight.unsqueeze(-2)
    scores = (scores - PHANTOM_SCORE) * pair_weight + PHANTOM_SCORE
    top = scores.detach().amax(-1, keepdim=True).clamp(min=PHANTOM_SCORE)
    keys = torch.exp(scores - top) * mask.unsqueeze(-2)
    phantoms = empty_slots[:, None, None] * torch.exp(PHANTOM_SCORE - top)
    return keys / (keys.sum(-1, keepdim=True) + phantoms) * pair_weight * mask.unsqueeze(-1)


def layer_norm(x: Tensor, scale: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension with the biased variance."""
    return functional.layer_norm(x, x.shape[-1:], scale, offset, eps)


def contraction(features: Tensor, rows: Tensor) -> Tensor:
    """M = Gᵀ R over the neighbours (Eq. 11, before its division). features (N, K, C), rows (N, K, 4) → (N, C, 4)."""
    return features.transpose(-1, -2) @ rows


def descriptor_product(matrix: Tensor, axis: int) -> Tensor:
    """D = M · (M[:axis])ᵀ, flattened row-major. matrix (N, C, 4) → (N, C·axis)."""
    return (matrix @ matrix[:, :axis].transpose(-1, -2)).flatten(1)
