"""Structures that are another one repeated: a supercell says nothing that its cell does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from dpa1.data.table import Formula, FrameTable
from dpa1.frames import Frame

TOLERANCE = 1e-3  # Å, by which every atom may be displaced
VOLUMES = 0.02  # relative difference of two volumes per atom beyond which no cell is a repeat of the other


def wrapped(fractional: np.ndarray) -> np.ndarray:
    """Fractional places in [0, 1)."""
    return np.mod(np.mod(fractional, 1.0), 1.0)  # twice: what is just below zero becomes 1 by the first


def covers(tree: cKDTree, places: np.ndarray, own: np.ndarray, cell: np.ndarray, times: int = 1) -> bool:
    """Whether ``places`` lie on the atoms ``own``, ``times`` on each.

    Parameters
    ----------
    tree: of ``own``.  places, own: (n·times, 3), (n, 3) fractional in ``cell`` (3, 3) Å; ``places`` within [0, 1).
    """
    reach = TOLERANCE / np.linalg.svd(cell, compute_uv=False).min()
    _, nearest = tree.query(places, distance_upper_bound=2.0 * reach)
    if (nearest == len(own)).any() or (np.bincount(nearest, minlength=len(own)) != times).any():
        return False
    offset = places - own[nearest]
    return bool(np.linalg.norm((offset - np.round(offset)) @ cell, axis=1).max() < 2.0 * TOLERANCE)


def lies_on(small: Frame, large: Frame, cell: np.ndarray, at: np.ndarray, of: np.ndarray) -> bool:
    """Whether some shift lays every atom of ``large`` on one of ``small``, the same number on each.

    Parameters
    ----------
    cell: (3, 3) Å of ``small``.  at, of: (n, 3), (N, 3) places of both, fractional in it.
    """
    elements, counts = np.unique(small.numbers, return_counts=True)
    rarest = elements[counts.argmin()]
    trees = {z: cKDTree(wrapped(at[small.numbers == z]), boxsize=1.0) for z in elements}
    times, anchor = len(large) // len(small), at[small.numbers == rarest][0]
    for start in of[large.numbers == rarest]:  # one atom of the rarest element is laid on each of its kind in turn
        moved = wrapped(of - start + anchor)
        if all(covers(trees[z], moved[large.numbers == z], at[small.numbers == z], cell, times) for z in elements):
            return True
    return False


def candidates(first: FrameTable, second: FrameTable) -> Iterator[tuple[int, int]]:
    """(frame of ``first``, frame of ``second``), of which one has the composition of the other several times, at its density."""
    groups: dict[Formula, list[tuple[float, int, int]]] = defaultdict(list)
    for i, (kind, units, volume) in enumerate(_formulas(first)):
        if volume:
            groups[kind].append((volume, units, i))
    columns = {kind: [np.array(column) for column in zip(*group, strict=True)] for kind, group in groups.items()}
    for k, (kind, units, volume) in enumerate(_formulas(second)):
        if volume and kind in columns:
            volumes, numbers, places = columns[kind]
            close = np.abs(volumes - volume) < VOLUMES * volume
            ratio = np.maximum(numbers, units) / np.minimum(numbers, units)
            for i in places[close & (numbers != units) & (ratio % 1 == 0)]:
                yield int(i), k


def _formulas(table: FrameTable) -> Iterator[tuple[Formula, int, float]]:
    """Per frame: reduced formula, how often the frame holds it, volume of one (Å³; 0 where not periodic)."""
    for (formula, units), volume in zip(table.formulas(), table.volume.tolist(), strict=True):
        yield formula, units, volume / units


def repeats_itself(frame: Frame) -> bool:
    """Whether some shift that is no vector of the cell lays the structure on itself."""
    cell = np.asarray(frame.cell)
    places = np.linalg.solve(cell.T, frame.positions.T).T
    elements, counts = np.unique(frame.numbers, return_counts=True)
    own = wrapped(places[frame.numbers == elements[counts.argmin()]])
    # What is laid on itself has like atoms at like distances, which atoms that move have not.
    distance, _ = cKDTree(wrapped(places), boxsize=1.0).query(own, k=min(4, len(frame)))
    reach = TOLERANCE / np.linalg.svd(cell, compute_uv=False).min()
    alike = np.flatnonzero((np.abs(distance - distance[0]) < 4.0 * reach).all(1))
    trees = {z: cKDTree(wrapped(places[frame.numbers == z]), boxsize=1.0) for z in elements} if len(alike) > 1 else {}
    for j in alike[1:]:
        moved = wrapped(places + own[j] - own[0])
        if all(covers(trees[z], moved[frame.numbers == z], places[frame.numbers == z], cell) for z in elements):
            return True
    return False


def is_repeat(small: Frame, large: Frame) -> bool:
    """Whether ``large`` is ``small`` repeated, turned and shifted: by whole cells, or unturned by any whole-number matrix."""
    one, two, times = np.asarray(small.cell), np.asarray(large.cell), len(large) // len(small)
    lengths = np.linalg.norm(two, axis=1)
    whole = np.round(two @ np.linalg.inv(one))
    straight = np.diag(np.round(lengths / np.linalg.norm(one, axis=1)))
    for matrix in (whole, straight):
        made = matrix @ one
        if round(abs(np.linalg.det(matrix))) != times:
            continue
        if np.abs((made @ made.T - two @ two.T) / lengths[:, None]).max() > TOLERANCE:
            continue
        at, of = (np.linalg.solve(c.T, f.positions.T).T for c, f in ((one, small), (two, large)))
        if lies_on(small, large, one, at, of @ matrix):
            return True
    return False
