"""The environment matrix in one compiled loop over the neighbours, and so its first derivative.

Fast sibling of ``reference.environment``; see ``environment`` for the formulas, and for the derivatives when a graph is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.compiled import available, loops
from dpa1.kernels.arrays import array, memory
from dpa1.kernels.environment import Shape, Slope


def supports(vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float) -> bool:
    """Positions in float64."""
    return vectors.dtype == torch.float64 and available()


def run(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.environment``, differentiable to any order; third derivatives by the reference."""
    out: tuple[Tensor, Tensor, Tensor] = _Environment.apply((dtype, start, cutoff, protection), vectors, mask)
    return out


class _Environment(torch.autograd.Function):
    """Switch (N, K), rows (N, K, 4), directions (N, K, 3)."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype, *lengths = shape
        like = torch.empty(0, dtype=dtype)
        weight, inverse, factor, distance = (like.new_empty(mask.shape) for _ in range(4))
        rows, direction = like.new_empty(*mask.shape, 4), like.new_empty(*mask.shape, 3)
        found = weight, rows, direction, inverse, factor, distance
        _forward(array(vectors), array(mask), *map(float, lengths), *map(memory, found))
        ctx.set_materialize_grads(False)
        ctx.shape = shape
        ctx.save_for_backward(vectors, mask, inverse, factor, distance, direction)
        return weight, rows, direction

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, Slope.apply(ctx.shape, *cotangents, *saved), None
        vectors, mask, inverse, factor, distance, direction = saved
        out = vectors.new_empty(vectors.shape)
        bars = [None if bar is None else array(bar) for bar in cotangents]
        _, start, cutoff, _ = ctx.shape
        given = map(array, (mask, inverse, factor, distance, direction))
        _slope(*bars, *given, float(start), float(cutoff), memory(out))
        return None, out, None


@loops
def _forward(
    vectors: np.ndarray,
    mask: np.ndarray,
    start: float,
    cutoff: float,
    protection: float,
    weight: np.ndarray,
    rows: np.ndarray,
    direction: np.ndarray,
    inverse: np.ndarray,
    factor: np.ndarray,
    distance: np.ndarray,
) -> None:
    number = weight.dtype.type
    atoms, slots = mask.shape
    for a in range(atoms):
        for k in range(slots):
            x, y, z = cutoff, 0.0, 0.0
            if mask[a, k]:
                x, y, z = vectors[a, k, 0], vectors[a, k, 1], vectors[a, k, 2]
            exact = np.sqrt(x * x + y * y + z * z)
            direction[a, k, 0], direction[a, k, 1], direction[a, k, 2] = x / exact, y / exact, z / exact
            r = number(exact)
            u = min(max((r - number(start)) / number(cutoff - start), number(0)), number(1))
            w = number(1) + u * u * u * (u * (number(15) - number(6) * u) - number(10))
            if not mask[a, k]:
                w = number(0)
            i = number(1) / (r + number(protection))
            s = w * i
            q = s * i
            weight[a, k], inverse[a, k], factor[a, k], distance[a, k] = w, i, q, r
            rows[a, k, 0], rows[a, k, 1], rows[a, k, 2], rows[a, k, 3] = s, q * number(x), q * number(y), q * number(z)


@loops
def _slope(
    weight_bar: Any,
    rows_bar: Any,
    direction_bar: Any,
    mask: np.ndarray,
    inverse: np.ndarray,
    factor: np.ndarray,
    distance: np.ndarray,
    direction: np.ndarray,
    start: float,
    cutoff: float,
    out: np.ndarray,
) -> None:
    """v̄ (N, K, 3)."""
    number = inverse.dtype.type
    atoms, slots = mask.shape
    for a in range(atoms):
        for k in range(slots):
            i, q, r = inverse[a, k], factor[a, k], distance[a, k]
            x, y, z = direction[a, k, 0], direction[a, k, 1], direction[a, k, 2]
            u = min(max((r - number(start)) / number(cutoff - start), number(0)), number(1))
            falling = u * (number(1) - u)
            slope = number(-30 / (cutoff - start)) * falling * falling
            total, e0, e1, e2 = number(0), number(0), number(0), number(0)
            if weight_bar is not None:
                total += slope * weight_bar[a, k]
            if rows_bar is not None:
                e0, e1, e2 = q * rows_bar[a, k, 1], q * rows_bar[a, k, 2], q * rows_bar[a, k, 3]
                radial = slope * i - q
                along = (radial - q) * i * r
                total += radial * rows_bar[a, k, 0]
                total += along * (x * rows_bar[a, k, 1] + y * rows_bar[a, k, 2] + z * rows_bar[a, k, 3])
            if direction_bar is not None and mask[a, k]:
                d0, d1, d2 = direction_bar[a, k, 0], direction_bar[a, k, 1], direction_bar[a, k, 2]
                total -= (x * d0 + y * d1 + z * d2) / r
                e0, e1, e2 = e0 + d0 / r, e1 + d1 / r, e2 + d2 / r
            out[a, k, 0], out[a, k, 1], out[a, k, 2] = e0 + x * total, e1 + y * total, e2 + z * total
