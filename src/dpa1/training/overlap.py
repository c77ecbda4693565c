"""Frames that are in two parts of the data: the same structure, whatever its place, orientation, order, file or labels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from dpa1.data.dataset import Dataset
from dpa1.errors import UserError
from dpa1.frames import Frame

TOLERANCE = 1e-3  # Å, by which every atom may be displaced
SHOWN = 5
VACUUM = 1e3  # Å, period given to directions that have none
WAVES = np.array([h for h in np.ndindex(3, 3, 3) if h > (1, 1, 1)]) - 1  # half of the 26 around zero


def check_overlap(train: Dataset, other: Dataset, name: str) -> None:
    """Refuse ``other`` data (``name``: test…) that hold structures of the training data.

    Raises
    ------
    UserError
        naming the first such frames.
    """
    found = overlap(train, other)
    if found:
        pairs = "; ".join(f"{other[b].name} = {train[a].name}" for a, b in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{len(found)} of {len(other)} {name} frames are training frames, too ({pairs}{more}), so their errors would "
            "say nothing about new structures; take them out of one of the two"
        )


def overlap(first: Dataset, second: Dataset) -> list[tuple[int, int]]:
    """(frame of ``first``, frame of ``second``) with the same atoms within 0.001 Å, in any order, shifted, turned or wrapped."""
    sizes = {int(n) for n in second.table.n_atoms}
    groups: dict[tuple[bytes, bytes], list[tuple[float, int, _Shape]]] = defaultdict(list)
    for i in range(len(first)):
        if int(first.table.n_atoms[i]) in sizes:
            shape = _shape(first[i])
            groups[shape.kind].append((shape.key, i, shape))
    for group in groups.values():
        group.sort(key=lambda entry: entry[:2])
    found = []
    for k in range(len(second)):
        shape = _shape(second[k])
        group = groups.get(shape.kind, [])
        start = bisect_left(group, shape.key - shape.slack, key=lambda entry: entry[0])
        stop = bisect_right(group, shape.key + shape.slack, key=lambda entry: entry[0])
        for _, i, other in sorted(group[start:stop], key=lambda entry: entry[1]):
            if _alike(shape, other) and _same(first[i], second[k]):
                found.append((i, k))
                break
    return found


@dataclass(frozen=True)
class _Shape:
    """What neither shift, rotation, wrapping nor order changes; ``values`` differ by ``slack`` at most between equals.

    kind: sorted atomic numbers and periodicity.  key: mean of ``values``.
    """

    kind: tuple[bytes, bytes]
    values: np.ndarray
    slack: float

    @property
    def key(self) -> float:
        return float(self.values.mean())


def _shape(frame: Frame) -> _Shape:
    numbers = np.sort(frame.numbers)
    kind = (numbers.tobytes(), np.sort(frame.pbc).tobytes())
    if not frame.pbc.any():
        distance = np.linalg.norm(frame.positions - frame.positions.mean(0), axis=1)
        return _Shape(kind, distance[np.lexsort((distance, frame.numbers))], 4.0 * TOLERANCE)
    cell = _cell(frame)
    # |structure factors| per element, times an Å; an atom off by d turns its phase by at most 2π |h G^-1| d.
    phase = np.exp(2j * np.pi * (np.linalg.solve(cell.T, frame.positions.T).T @ WAVES.T))
    factors = [np.abs(phase[frame.numbers == z].mean(0)) for z in np.unique(numbers)]
    slack = 2.0 * np.pi * 2.0 * TOLERANCE * float(np.linalg.norm(np.linalg.inv(cell) @ WAVES.T, axis=0).max())
    return _Shape(kind, np.concatenate(factors), slack + 1e-6)


def _alike(a: _Shape, b: _Shape) -> bool:
    return bool(np.abs(a.values - b.values).max() <= max(a.slack, b.slack))


def _cell(frame: Frame) -> np.ndarray:
    """(3, 3) Å, with a long vector across the others where the frame is not periodic."""
    if frame.pbc.all():
        return np.asarray(frame.cell)
    return np.asarray(complete_cell(frame.cell * frame.pbc[:, None])) * np.where(frame.pbc, 1.0, VACUUM)[:, None]


def _same(a: Frame, b: Frame) -> bool:
    if not a.pbc.any():
        return bool(np.abs(_distances(a) - _distances(b)).max(initial=0.0) < 2.0 * TOLERANCE)
    one, two = _cell(a), _cell(b)
    lengths = np.linalg.norm(one, axis=1)
    if not np.array_equal(a.pbc, b.pbc) or np.abs((one @ one.T - two @ two.T) / lengths[:, None]).max() > TOLERANCE:
        return False
    # Places in the first frame's orientation; one atom of the rarest element is laid on each of its kind in turn.
    at, of = (np.linalg.solve(c.T, f.positions.T).T for c, f in ((one, a), (two, b)))
    elements, counts = np.unique(a.numbers, return_counts=True)
    rarest = elements[counts.argmin()]
    trees = {z: cKDTree(_wrapped(at[a.numbers == z]), boxsize=1.0) for z in elements}
    reach = TOLERANCE / np.linalg.svd(one, compute_uv=False).min()
    anchor = at[a.numbers == rarest][0]
    for start in of[b.numbers == rarest]:
        moved = of - start + anchor
        if all(_covers(trees[z], _wrapped(moved[b.numbers == z]), at[a.numbers == z], one, reach) for z in elements):
            return True
    return False


def _wrapped(fractional: np.ndarray) -> np.ndarray:
    return np.mod(np.mod(fractional, 1.0), 1.0)  # twice: what is just below zero becomes 1 by the first


def _covers(tree: cKDTree, places: np.ndarray, own: np.ndarray, cell: np.ndarray, reach: float) -> bool:
    _, nearest = tree.query(places, distance_upper_bound=2.0 * reach)
    if (nearest == len(own)).any() or len(np.unique(nearest)) < len(own):
        return False
    offset = places - own[nearest]
    return bool(np.linalg.norm((offset - np.round(offset)) @ cell, axis=1).max() < 2.0 * TOLERANCE)


def _distances(frame: Frame) -> np.ndarray:
    """Distances (Å) between all atoms, sorted per pair of elements."""
    order = np.argsort(frame.numbers, kind="stable")
    numbers, distance = frame.numbers[order], pdist(frame.positions[order])
    i, j = np.triu_indices(len(frame), 1)
    return np.asarray(distance[np.lexsort((distance, 1000 * numbers[i] + numbers[j]))])
