"""Structures on which the forces of tables and networks are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from dpa1.frames import Frame, make_frame

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

ORDINARY = 3  # periodic structures about as dense as the training data
DENSEST = 0.17  # atoms/Å³ of one more: diamond has 0.18
FEW = 8  # atoms, at least, of that one and of one without periodicity
VOLUME = 15.0  # Å³ of an atom in the latter


def sample_structures(potential: Potential, elements: Sequence[int]) -> list[Frame]:
    """Random structures of these elements (indices), contacts from bonded to far: periodic, a denser one, a cluster."""
    rng = np.random.default_rng(0)
    numbers = np.array([atomic_numbers[potential.elements[k]] for k in elements])
    atoms = min(max(16, 2 * len(numbers)), 96)
    neighbors = potential.config.mean_neighbors or 0.5 * float(potential.config.sel or 0)
    density = min(max(neighbors / (4.0 / 3.0 * math.pi * potential.cutoff**3), 0.01), 0.1)
    few = max(FEW, min(len(numbers), atoms))
    frames: list[Frame] = []
    for count, each in (*[(atoms, density)] * ORDINARY, (few, DENSEST)):
        kinds = _kinds(numbers, count, rng)
        edge = (count / each) ** (1.0 / 3.0)
        cell = np.eye(3) * edge + rng.uniform(-0.08, 0.08, (3, 3)) * edge
        images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
        frames.append(
            make_frame(kinds, _place(kinds, cell, images, rng), cell, True, source="sample", index=len(frames))
        )
    kinds = _kinds(numbers, few, rng)
    box = np.eye(3) * (VOLUME * few) ** (1.0 / 3.0)
    cluster = make_frame(kinds, _place(kinds, box, np.zeros((1, 3)), rng), source="sample", index=len(frames))
    return [*frames, cluster]


def _kinds(numbers: np.ndarray, atoms: int, rng: np.random.Generator) -> np.ndarray:
    """(atoms,) atomic numbers in random order, all equally often."""
    return rng.permutation(np.resize(numbers, atoms) if atoms >= len(numbers) else rng.choice(numbers, atoms, False))


def _place(kinds: np.ndarray, cell: np.ndarray, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random positions in a cell without contacts, of any image (m, 3), shorter than about a bond."""
    radii = covalent_radii[kinds]
    placed = np.zeros((0, 3))
    for index in range(len(kinds)):
        allowed = 0.9
        while True:
            trial = rng.uniform(0, 1, 3) @ cell
            gaps = np.linalg.norm(trial - placed[:, None] + images, axis=-1).min(1)
            if (gaps > allowed * (radii[index] + radii[:index])).all():
                break
            allowed *= 0.98
        placed = np.vstack([placed, trial])
    return placed
