"""What training on a dataset will need, to within a factor of three: memory and time."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from dpa1.config.model import SIZES
from dpa1.data.table import FrameTable

# Share of a plain matrix product's speed that a training step reaches; forward, forces and their gradients together cost
# about six forward passes and keep about three times its intermediate results.
_EFFICIENCY, _PASSES, _KEPT = 0.15, 6.0, 3.0


def forecast(table: FrameTable, neighbors: float, neighbors_squared: float) -> dict[str, Any]:
    """Sizes in MB and seconds per epoch on this machine's processor for the named model sizes (float32).

    ``neighbors``, ``neighbors_squared``: means over atoms of the neighbour number and its square.
    """
    atoms = float(table.n_atoms.sum())
    forces, bytes_per_pair = float(table.n_atoms[table.has("forces")].sum()), 6.0
    rate = _matrix_rate()
    result: dict[str, Any] = {
        "frames_MB": (24 * (atoms + forces) + 8 * atoms + 1000 * len(table)) / 1e6,
        "packed_store_MB": (24 * (atoms + forces) + atoms + 260 * len(table)) / 1e6,
        "neighbor_lists_MB": bytes_per_pair * atoms * neighbors / 1e6,
        "pairs": int(atoms * neighbors),
        "cores": os.cpu_count(),
        "sizes": {},
    }
    for size in SIZES:
        flops, floats = _per_atom(size, neighbors, neighbors_squared)
        result["sizes"][size] = {
            "seconds_per_epoch": _PASSES * atoms * flops / (rate * _EFFICIENCY),
            "MB_per_1000_atoms_in_batch": _KEPT * 4.0 * floats * 1000 / 1e6,
        }
    return result


def _per_atom(size: str, k: float, kk: float) -> tuple[float, float]:
    """Floating-point operations and stored numbers of one forward pass, per atom."""
    model = SIZES[size]
    widths, layers, h = model["embedding"], model["attention_layers"], model["attention_width"]
    net = sum(a * b for a, b in zip([1 + 2 * model.get("type_embedding", 8), *widths], widths, strict=False))
    g, axis = widths[-1], model["axis"]
    attention = layers * (k * 4 * g * h + kk * 2 * h)
    fitting = sum(a * b for a, b in zip([g * axis, *model["fitting"]], model["fitting"], strict=False))
    flops = 2.0 * (k * net + attention + 8 * k * g + 4 * g * axis + fitting)
    floats = k * (sum(widths) + g) + layers * (k * (4 * h + 2 * g) + 6 * kk) + g * axis + sum(model["fitting"])
    return flops, floats


def _matrix_rate() -> float:
    """Floating-point operations per second of a float32 matrix product here."""
    a = np.ones((512, 512), dtype=np.float32)
    a @ a
    best = min(_timed(a) for _ in range(3))
    return 2.0 * 512**3 / best


def _timed(a: np.ndarray) -> float:
    start = time.perf_counter()
    a @ a
    return max(time.perf_counter() - start, 1e-9)
