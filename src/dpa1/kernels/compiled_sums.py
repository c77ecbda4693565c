"""Forces and virials from what the energy changes along each pair, in one compiled loop over the pairs.

Fast sibling of ``reference.pair_sums``. With bars for cotangents, s̄ = F̄_i − F̄_j − W̄ v and v̄ = −W̄ᵀ s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.compiled import available, loops
from dpa1.kernels.arrays import array, memory


def supports(slope: Tensor, vectors: Tensor, centre: Tensor, neighbor: Tensor, frame: Tensor, frames: int) -> bool:
    """Everything."""
    return available()


def run(
    slope: Tensor, vectors: Tensor, centre: Tensor, neighbor: Tensor, frame: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """``reference.pair_sums``, differentiable to any order."""
    forces, virial = _Sums.apply(slope, vectors, centre, neighbor, frame, frames)
    return forces, virial


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, vectors: Tensor, centre: Tensor, neighbor: Tensor, frame: Tensor, frames: int
    ) -> tuple[Tensor, Tensor]:
        forces, virial = slope.new_zeros(len(frame), 3), slope.new_zeros(frames, 3, 3)
        _add(*map(array, (slope, vectors, centre, neighbor, frame)), memory(forces), memory(virial))
        ctx.save_for_backward(slope, vectors, centre, neighbor, frame)
        return forces, virial

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Tensor | None, ...]:
        slope, vectors, centre, neighbor, frame = ctx.saved_tensors
        forces, virial = bars[0], bars[1][frame[centre]]
        slope_bar = forces[centre] - forces[neighbor] - (virial @ vectors.unsqueeze(-1)).squeeze(-1)
        return slope_bar, -(slope.unsqueeze(-2) @ virial).squeeze(-2), None, None, None, None


@loops
def _add(
    slope: np.ndarray,
    vectors: np.ndarray,
    centre: np.ndarray,
    neighbor: np.ndarray,
    frame: np.ndarray,
    forces: np.ndarray,
    virial: np.ndarray,
) -> None:
    """Forces (N, 3) and virials (F, 3, 3), zero before."""
    for p in range(len(slope)):
        i, j = centre[p], neighbor[p]
        w = virial[frame[i]]
        for a in range(3):
            s = slope[p, a]
            forces[i, a] += s
            forces[j, a] -= s
            for b in range(3):
                w[a, b] -= s * vectors[p, b]
