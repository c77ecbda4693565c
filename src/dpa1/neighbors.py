"""Who sees whom within the cutoff: one function, one contract, whatever library does the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpa1.errors import UserError
from dpa1.frames import Frame

CLOSEST = 0.05  # Å; below this two atoms count as lying on one spot (1/r would swamp float32)


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
    both = np.concatenate([centre, neighbor]).view(np.int64)
    turned = np.concatenate([neighbor, centre]).view(np.int64)
    return _sorted(both, turned, np.concatenate([shift, -shift]), len(frame))


def _sorted(centre: np.ndarray, neighbor: np.ndarray, shift: np.ndarray, n_atoms: int) -> Neighbors:
    order, _ = _group(neighbor, n_atoms)
    by_centre, ends = _group(centre.take(order), n_atoms)
    order = order.take(by_centre)
    centre = np.repeat(np.arange(n_atoms), np.diff(ends))
    neighbor, shift = neighbor.take(order), shift.take(order, axis=0)
    # Several images of one neighbour are neighbours in the list by now.
    same = (neighbor[1:] == neighbor[:-1]) & (centre[1:] == centre[:-1])
    if same.any():
        tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
        images = shift[tied]
        shift[tied] = images[np.lexsort((*images.T[::-1], neighbor[tied], centre[tied]))]
    return Neighbors(centre, neighbor, shift)


def _group(keys: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(P,) stable order of integers below n, and (n + 1,) where each one begins: a counting sort, as sparse matrices do."""
    from scipy.sparse import csc_matrix

    small = np.int32 if len(keys) < 2**31 else np.int64
    pairs = np.arange(len(keys) + 1, dtype=small)
    rows = csc_matrix((np.ones(len(keys), dtype=np.int8), keys.astype(small), pairs), shape=(n, len(keys))).tocsr()
    return rows.indices, rows.indptr


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
