"""Frames that are in two parts of the data: the same structure, whatever its place, orientation, order, file or labels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell
from scipy.spatial.distance import pdist

from dpa1.data.dataset import Dataset
from dpa1.data.supercell import TOLERANCE, candidates, is_repeat, lies_on, repeats_itself
from dpa1.data.table import FrameTable
from dpa1.errors import UserError
from dpa1.frames import Frame

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
        pairs = "; ".join(_pair(train[a], other[b]) for a, b in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{len(found)} of {len(other)} {name} frames are training frames, too ({pairs}{more}), so their errors would "
            "say nothing about new structures; take them out of one of the two"
        )


def _pair(train: Frame, other: Frame) -> str:
    return f"{other.name} = {train.name}{'' if len(train) == len(other) else ', repeated'}"


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None, int]:
    """``Dataset.split``, but where it would part copies of a structure, structures are drawn with all their copies.

    Returns
    -------
    The rest, what is held out (None when all frames are copies of one), and how many copies made the difference.

    Raises
    ------
    UserError
        as ``Dataset.split``.
    """
    rest, held = dataset.split(fraction, seed)
    if not overlap(rest, held):
        return rest, held, 0
    original = np.arange(len(dataset))
    repeats: dict[int, int] = {}
    _add_repeats(dataset, dataset, repeats)
    for first, copy in [*overlap(dataset, dataset), *repeats.items()]:
        low, high = sorted((original[first], original[copy]))
        original[original == high] = low
    different = np.unique(original)
    if len(different) < 2:
        return dataset, None, len(dataset) - 1
    drawn = np.isin(original, different[dataset.subset(different).drawn(fraction, seed)])
    rest, held = dataset.subset(np.flatnonzero(~drawn)), dataset.subset(np.flatnonzero(drawn))
    return rest, held, len(dataset) - len(different)


def overlap(first: Dataset, second: Dataset) -> list[tuple[int, int]]:
    """(frame of ``first``, frame of ``second``) with the same atoms within 0.001 Å, in any order, shifted, turned or wrapped.

    Where there is none, one that is the other repeated. Frames of two different levels of theory are never the same.
    """
    wanted = set(_compositions(second.table))
    groups: dict[tuple[bytes, bytes], list[tuple[float, int, _Shape]]] = defaultdict(list)
    for i, composition in enumerate(_compositions(first.table)):
        if composition in wanted:
            shape = _shape(first[i])
            groups[shape.kind].append((shape.key, i, shape))
    for group in groups.values():
        group.sort(key=lambda entry: entry[:2])
    found: dict[int, int] = {}
    for k in range(len(second)):
        shape = _shape(second[k])
        group = groups.get(shape.kind, [])
        start = bisect_left(group, shape.key - shape.slack, key=lambda entry: entry[0])
        stop = bisect_right(group, shape.key + shape.slack, key=lambda entry: entry[0])
        for _, i, other in sorted(group[start:stop], key=lambda entry: entry[1]):
            if _alike(shape, other) and _comparable(first, i, second, k) and _same(first[i], second[k]):
                found[k] = i
                break
    _add_repeats(first, second, found)
    return [(i, k) for k, i in sorted(found.items())]


def _add_repeats(first: Dataset, second: Dataset, found: dict[int, int]) -> None:
    periodic: dict[tuple[int, int], bool] = {}
    for i, k in candidates(first.table, second.table):
        if k in found or not _comparable(first, i, second, k):
            continue
        large = (0, i) if first.n_atoms(i) > second.n_atoms(k) else (1, k)
        if large not in periodic:
            periodic[large] = repeats_itself((first, second)[large[0]][large[1]])
        if periodic[large] and is_repeat(*sorted((first[i], second[k]), key=len)):
            found[k] = i


def _compositions(table: FrameTable) -> list[tuple[bytes, bytes]]:
    ends = np.cumsum(table.kinds)
    return [(table.z[a:b].tobytes(), table.count[a:b].tobytes()) for a, b in zip(ends - table.kinds, ends, strict=True)]


def _comparable(first: Dataset, i: int, second: Dataset, k: int) -> bool:
    """False where both name a level of theory, and not the same one."""
    a, b = (t.levels[t.level[n]] if t.level[n] >= 0 else None for t, n in ((first.table, i), (second.table, k)))
    return a == b or a is None or b is None


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
    at, of = (np.linalg.solve(c.T, f.positions.T).T for c, f in ((one, a), (two, b)))
    return lies_on(a, b, one, at, of)


def _distances(frame: Frame) -> np.ndarray:
    """Distances (Å) between all atoms, sorted per pair of elements."""
    order = np.argsort(frame.numbers, kind="stable")
    numbers, distance = frame.numbers[order], pdist(frame.positions[order])
    i, j = np.triu_indices(len(frame), 1)
    return np.asarray(distance[np.lexsort((distance, 1000 * numbers[i] + numbers[j]))])
