"""Who sees whom within the cutoff: one function, one contract, whatever library does the search."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dpa1.cell_search import Pairs, find_pairs
from dpa1.compiled import available, loops
from dpa1.errors import UserError
from dpa1.frames import Frame, make_frame

log = logging.getLogger("dpa1")

CLOSEST = 0.05  # Å; below this two atoms count as lying on one spot (1/r would swamp float32)
PIECE = 1 << 14  # pairs
MOST_ATOMS = 1 << 31  # of which compiled loops keep the index in four bytes
FURTHEST = 1e8  # Å; likewise, of the images
FAR = 512  # cells; atoms further out are sorted more slowly


@dataclass(frozen=True)
class Neighbors:
    """Every ordered pair (i, j, image) with 0 < r ≤ cutoff, sorted by i, then j, then image.

    The order depends on nothing but which pairs there are: not on the search, its threads or where atoms stand.

    Attributes
    ----------
    centre, neighbor: (P,) int64 atom indices i and j.
    shift: (P, 3) integer cell offsets S; the pair vector is ``x[j] − x[i] + S @ cell``.
    """

    centre: np.ndarray
    neighbor: np.ndarray
    shift: np.ndarray

    def distances(self, frame: Frame) -> np.ndarray:
        """(P,) Å, in the frame the pairs were found in."""
        vectors = frame.positions[self.neighbor] - frame.positions[self.centre] + self.shift @ frame.cell
        return np.linalg.norm(vectors, axis=1)


def find_neighbors(frame: Frame, cutoff: float, threads: int = 1) -> Neighbors:
    """All neighbours of all atoms of one frame, none dropped, for any cell and any mixture of periodic directions.

    ``threads`` share the search, which changes nothing in the result.

    Raises
    ------
    UserError
        when two atoms lie on one spot (closer than 0.05 Å); the sentence names frame and atoms.
    """
    # Each pair once: turning them round takes a fraction of the time in which they are found a second time.
    centre, neighbor, shift, closest = _search(frame, cutoff, threads)
    if closest is not None and closest[0] < CLOSEST:
        distance, *atoms = closest
        raise UserError(
            f"{frame.name}: atoms {min(atoms)} and {max(atoms)} are {distance:.3f} Å apart (on one spot); repair or remove "
            "the frame"
        )
    return _both_ways(centre, neighbor, shift, len(frame))


def _search(frame: Frame, cutoff: float, threads: int) -> Pairs:
    here = 0 < len(frame) < MOST_ATOMS and np.abs(frame.positions).max() < FURTHEST
    if here and available() and search_error() == 0.0:
        return find_pairs(frame.positions, complete_cell(frame), frame.pbc, cutoff, threads)
    return _by_library(frame, cutoff, threads)


def _by_library(frame: Frame, cutoff: float, threads: int) -> Pairs:
    from vesin import NeighborList

    search = NeighborList(cutoff=cutoff, full_list=False, n_threads=threads)
    # Box rows of non-periodic directions may be zero or arbitrary: vesin wants an invertible box.
    centre, neighbor, shift, distance = search.compute(
        points=frame.positions, box=complete_cell(frame), periodic=frame.pbc, quantities="ijSd"
    )
    # int64 views: the library's unsigned indices never reach 2⁶³.
    centre, neighbor = centre.view(np.int64), neighbor.view(np.int64)
    k = int(np.argmin(distance)) if len(distance) else None
    return Pairs(centre, neighbor, shift, None if k is None else (float(distance[k]), int(centre[k]), int(neighbor[k])))


@cache
def search_error() -> float:
    """Share of the pairs of two small structures that the compiled search finds otherwise than the library; tried once."""
    rng, worst = np.random.default_rng(0), 0.0
    for pbc in (True, (True, False, True)):
        cell = 4.0 * np.eye(3) + rng.uniform(-1.0, 1.0, (3, 3))
        frame = make_frame([1] * 12, rng.uniform(-1.0, 2.0, (12, 3)) @ cell, cell, pbc)
        found = find_pairs(frame.positions, complete_cell(frame), frame.pbc, 5.0)
        ours, theirs = (
            {*zip(n.centre.tolist(), n.neighbor.tolist(), map(tuple, n.shift.tolist()), strict=True)}
            for n in (_both_ways(*pairs[:3], len(frame)) for pairs in (found, _by_library(frame, 5.0, 1)))
        )
        worst = max(worst, len(ours ^ theirs) / len(theirs))
    if worst:
        log.warning(
            "the compiled neighbor search differs from that of vesin on this machine: vesin, slower, runs instead"
        )
    return worst


def report(device: str) -> list[dict[str, Any]]:
    """The search as a line of ``dpa1 doctor``; none where it does not run."""
    if device != "cpu" or not available():
        return []
    error = search_error()
    path = {"operation": "neighbors", "path": "neighbor search in compiled loops", "precision": "float64"}
    return [{**path, "error": error, "ok": error == 0.0}]


def _both_ways(centre: np.ndarray, neighbor: np.ndarray, shift: np.ndarray, n_atoms: int) -> Neighbors:
    """Every pair and its reverse, sorted by centre, neighbor and image."""
    pairs = len(centre)
    far = max(shift.max(initial=0), -shift.min(initial=0)) >= FAR
    if far or n_atoms >= MOST_ATOMS or not available():
        return _by_columns(centre, neighbor, shift)
    counts = np.bincount(centre, minlength=n_atoms) + np.bincount(neighbor, minlength=n_atoms)
    found = Neighbors(
        np.repeat(np.arange(n_atoms), counts),
        np.empty(2 * pairs, dtype=np.int64),
        np.empty((2 * pairs, 3), dtype=shift.dtype),
    )
    grouped = np.empty((2 * pairs, 2), dtype=np.int32)
    _arrange(centre, neighbor, np.ascontiguousarray(shift), np.cumsum(counts), grouped, found.neighbor, found.shift)
    return found


@loops
def _arrange(
    centre: np.ndarray,
    neighbor: np.ndarray,
    shift: np.ndarray,
    ends: np.ndarray,
    grouped: np.ndarray,
    neighbors: np.ndarray,
    shifts: np.ndarray,
) -> None:
    """Pairs and their reverses brought together by atom, then handed on to the other atom of each in the order of the first.

    ``ends`` (N,): where the pairs of each atom end. ``grouped`` (2 P, 2) is filled with the other atom and the image as one
    number, for which there is room up to ``FAR`` cells.
    """
    free = np.empty_like(ends)
    free[0] = 0
    free[1:] = ends[:-1]
    for p in range(len(centre)):
        i, j = centre[p], neighbor[p]
        x, y, z = shift[p, 0], shift[p, 1], shift[p, 2]
        # The pair (i, j, S) is the reverse of (j, i, −S), by which it is handed on.
        place = free[i]
        grouped[place, 0], grouped[place, 1] = j, ((FAR - x) << 20) + ((FAR - y) << 10) + FAR - z
        free[i] += 1
        place = free[j]
        grouped[place, 0], grouped[place, 1] = i, ((FAR + x) << 20) + ((FAR + y) << 10) + FAR + z
        free[j] += 1
    free[0] = 0
    free[1:] = ends[:-1]
    begin = 0
    for i in range(len(ends)):
        for k in range(begin, ends[i]):
            j, image = grouped[k, 0], grouped[k, 1]
            place = free[j]
            free[j] += 1
            neighbors[place] = i
            shifts[place, 0], shifts[place, 1], shifts[place, 2] = image >> 20, image >> 10 & 1023, image & 1023
            for x in range(3):
                shifts[place, x] -= FAR
        begin = ends[i]
    begin = 0
    for i in range(len(ends)):
        for k in range(begin + 1, ends[i]):
            # Images of one neighbor are few, so each is inserted where it belongs.
            place = k
            while place > begin and neighbors[place - 1] == neighbors[place]:
                x = 0
                while x < 2 and shifts[place - 1, x] == shifts[place, x]:
                    x += 1
                if shifts[place - 1, x] <= shifts[place, x]:
                    break
                for x in range(3):
                    shifts[place - 1, x], shifts[place, x] = shifts[place, x], shifts[place - 1, x]
                place -= 1
        begin = ends[i]


def pieces(count: int) -> Iterator[slice]:
    """So many pairs in pieces small enough that what is computed in between stays in the processor's cache."""
    for start in range(0, count, PIECE):
        yield slice(start, start + PIECE)


def _by_columns(centre: np.ndarray, neighbor: np.ndarray, shift: np.ndarray) -> Neighbors:
    """The same by numpy alone."""
    centre, neighbor = (np.concatenate(ends).astype(np.int64) for ends in ((centre, neighbor), (neighbor, centre)))
    shift = np.concatenate([shift, -shift])
    order = np.lexsort((*shift.T[::-1], neighbor, centre))
    return Neighbors(centre[order], neighbor[order], shift[order])


def complete_cell(frame: Frame) -> np.ndarray:
    """The cell with non-periodic directions replaced by unit vectors perpendicular to the periodic ones."""
    if frame.pbc.all():
        return frame.cell
    if not frame.pbc.any():
        return np.eye(3)
    periodic = frame.cell[frame.pbc]
    # The last rows of V span the complement of the periodic vectors.
    complement = np.linalg.svd(periodic)[2][len(periodic) :]
    box = np.empty((3, 3))
    box[frame.pbc] = periodic
    box[~frame.pbc] = complement
    return box
