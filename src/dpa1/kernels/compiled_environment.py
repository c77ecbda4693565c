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
from dpa1.kernels.environment import Formed, Passes, Shape, environment


def supports(vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float) -> bool:
    """Positions in float64."""
    return vectors.dtype == torch.float64 and available()


def run(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.environment``, differentiable to any order; third derivatives by the reference."""
    return environment(COMPILED, vectors, mask, (dtype, start, cutoff, protection))


def forward(shape: Shape, vectors: Tensor, mask: Tensor) -> Formed:
    """Everything in one loop."""
    dtype, *lengths = shape
    wide = (mask.shape,) * 4 + ((*mask.shape, 4), (*mask.shape, 3))
    made = Formed(*(torch.empty(size, dtype=dtype) for size in wide))
    _forward(array(vectors), array(mask), *map(float, lengths), *map(memory, made))
    return made


def slope(
    shape: Shape,
    weight_bar: Tensor | None,
    rows_bar: Tensor | None,
    direction_bar: Tensor | None,
    vectors: Tensor,
    *saved: Tensor,
) -> Tensor:
    """v̄ (N, K, 3) from cotangents and mask, inverse, factor, distance and direction."""
    _, start, cutoff, _ = shape
    out = vectors.new_empty(vectors.shape)
    bars = [None if bar is None else array(bar) for bar in (weight_bar, rows_bar, direction_bar)]
    _slope(*bars, *map(array, saved), float(start), float(cutoff), memory(out))
    return out


COMPILED = Passes(forward, slope)


@loops
def _forward(
    vectors: np.ndarray,
    mask: np.ndarray,
    start: float,
    cutoff: float,
    protection: float,
    weight: np.ndarray,
    inverse: np.ndarray,
    factor: np.ndarray,
    distance: np.ndarray,
    rows: np.ndarray,
    direction: np.ndarray,
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
