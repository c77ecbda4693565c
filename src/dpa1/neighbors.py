"""Who sees whom within the cutoff: one function, one contract, whatever library does the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dpa1.errors import UserError
from dpa1.frames import Frame

CLOSEST = 0.05  # Å; below this two atoms count as lying on one spot (1/r would swamp float32)
PIECE = 1 << 14  # pairs
RADIX = 1 << 15  # numbers; fewer are not worth its passes


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
    from vesin import NeighborList

    # Each pair once: turning them round takes a fraction of the time in which they are found a second time.
    search = NeighborList(cutoff=cutoff, full_list=False, n_threads=threads)
    # Box rows of non-periodic directions may be zero or arbitrary: vesin wants an invertible box. What it returns here
    # are views that live as long as ``search``.
    centre, neighbor, shift, distance = search.compute(
        points=frame.positions, box=complete_cell(frame), periodic=frame.pbc, quantities="ijSd", copy=False
    )
    if len(distance) and distance.min() < CLOSEST:
        k = int(np.argmin(distance))
        raise UserError(
            f"{frame.name}: atoms {min(centre[k], neighbor[k])} and {max(centre[k], neighbor[k])} are {distance[k]:.3f} Å "
            "apart (on one spot); repair or remove the frame"
        )
    # int64 views: the library's unsigned indices never reach 2⁶³.
    return _both_ways(centre.view(np.int64), neighbor.view(np.int64), shift, len(frame))


def _both_ways(centre: np.ndarray, neighbor: np.ndarray, shift: np.ndarray, n_atoms: int) -> Neighbors:
    """Every pair and its reverse, sorted: as one integer each, which sorts many times faster than five columns do."""
    most = int(max(shift.max(initial=0), -shift.min(initial=0)))
    atom, side = max(n_atoms - 1, 0).bit_length(), (2 * most).bit_length()
    image = 3 * side
    if 2 * atom + image > 63:  # more atoms than memory holds, or an atom thousands of cells away
        return _by_columns(centre, neighbor, shift)
    largest = 2 * most * ((1 << 2 * side) + (1 << side) + 1)
    pairs = len(centre)
    keys = np.empty(2 * pairs, dtype=np.int64)
    for some in pieces(pairs):
        x, y, z = shift[some].T.astype(np.int64) + most
        number = (x << 2 * side) + (y << side) + z
        ways = (keys[:pairs], centre, neighbor, number), (keys[pairs:], neighbor, centre, largest - number)
        for key, first, second, third in ways:
            np.left_shift(first[some], atom, out=key[some])
            key[some] |= second[some]
            key[some] <<= image
            key[some] |= third
    keys = _sorted(keys)
    found = Neighbors(np.empty_like(keys), np.empty_like(keys), np.empty((2 * pairs, 3), dtype=shift.dtype))
    for some in pieces(2 * pairs):
        key = keys[some]
        found.centre[some] = key >> atom + image
        found.neighbor[some] = key >> image & (1 << atom) - 1
        for k, shifted in enumerate((2 * side, side, 0)):
            found.shift[some, k] = (key >> shifted & (1 << side) - 1) - most
    return found


def _sorted(keys: np.ndarray) -> np.ndarray:
    """Many of them by torch's radix sort: numpy's takes several times as long on some processors, and one thread."""
    return torch.sort(torch.from_numpy(keys)).values.numpy() if len(keys) >= RADIX else np.sort(keys)


def pieces(count: int) -> Iterator[slice]:
    """So many pairs in pieces small enough that what is computed in between stays in the processor's cache."""
    for start in range(0, count, PIECE):
        yield slice(start, start + PIECE)


def _by_columns(centre: np.ndarray, neighbor: np.ndarray, shift: np.ndarray) -> Neighbors:
    """The same, column by column."""
    centre, neighbor = np.concatenate([centre, neighbor]), np.concatenate([neighbor, centre])
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
