"""Who sees whom within the cutoff: one function, one contract, whatever library does the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpa1.errors import UserError
from dpa1.frames import Frame

CLOSEST = 0.05  # Å; below this two atoms count as lying on one spot (1/r would swamp float32)
PIECE = 1 << 14  # pairs
ROWS = 1 << 10  # of a piece, where many have next to no pairs


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
    """Every pair and its reverse, sorted by centre, neighbor and image.

    First what belongs to each atom is brought together, then sorted as one integer a pair. Of more atoms than 16 bits can
    number, for which numpy sorts by counting, two (four, …) are treated as one, and the integer says which it is.
    """
    most = int(max(shift.max(initial=0), -shift.min(initial=0)))
    atom, side = max(n_atoms - 1, 0).bit_length(), (2 * most).bit_length()
    image, within = 3 * side, max(0, atom - 16)
    bits = within + atom + image
    if bits > 63:  # more atoms than memory holds, or an atom thousands of cells away
        return _by_columns(centre, neighbor, shift)
    largest = 2 * most * ((1 << 2 * side) + (1 << side) + 1)
    pairs = len(centre)
    groups = np.empty(2 * pairs, dtype=np.uint16)
    keys: np.ndarray = np.empty(2 * pairs, dtype=np.int32 if bits <= 31 else np.int64)
    for some in pieces(pairs):
        x, y, z = shift[some].T.astype(np.int64) + most
        number = (x << 2 * side) + (y << side) + z
        ways = (0, centre, neighbor, number), (pairs, neighbor, centre, largest - number)
        for start, first, second, third in ways:
            here = slice(start + some.start, start + some.start + len(third))
            np.right_shift(first[some], within, out=groups[here], casting="unsafe")
            key = first[some] & (1 << within) - 1
            key <<= atom
            key |= second[some]
            key <<= image
            np.bitwise_or(key, third, out=keys[here], casting="same_kind")
    counts = np.bincount(centre, minlength=n_atoms) + np.bincount(neighbor, minlength=n_atoms)
    grouped = np.add.reduceat(counts, np.arange(0, n_atoms, 1 << within)) if within else counts
    keys = _sorted_rows(keys[np.argsort(groups, kind="stable")], grouped)
    found = Neighbors(
        np.repeat(np.arange(n_atoms), counts),
        np.empty(2 * pairs, dtype=np.int64),
        np.empty((2 * pairs, 3), dtype=shift.dtype),
    )
    for some in pieces(2 * pairs):
        key = keys[some]
        found.neighbor[some] = key >> image & (1 << atom) - 1
        for k, shifted in enumerate((2 * side, side, 0)):
            found.shift[some, k] = (key >> shifted & (1 << side) - 1) - most
    return found


def _sorted_rows(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each group's ``keys`` sorted, ``counts`` of which follow one another; many groups at once, as rows of one length.

    numpy sorts short rows without branches.
    """
    ends, last = np.cumsum(counts), np.iinfo(keys.dtype).max
    first = start = 0
    while first < len(counts):
        fitting = int(np.searchsorted(ends, start + PIECE, side="right"))
        rows = slice(first, min(max(fitting, first + 1), first + ROWS))
        some = slice(start, int(ends[rows.stop - 1]))
        filled = np.arange(counts[rows].max()) < counts[rows, None]
        padded = np.full(filled.shape, last)
        padded[filled] = keys[some]
        padded.sort(axis=1)
        keys[some] = padded[filled]
        first, start = rows.stop, some.stop
    return keys


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
