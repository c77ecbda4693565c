"""Who sees whom within the cutoff: one function, one contract, whatever library does the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpa1.errors import UserError
from dpa1.frames import Frame

CLOSEST = 0.05  # Å; below this two atoms count as lying on one spot (1/r would swamp float32)


@dataclass(frozen=True)
class Neighbors:
    """Every ordered pair (i, j, image) with 0 < r ≤ cutoff, sorted by centre atom and then by distance.

    Attributes
    ----------
    centre, neighbor: (P,) atom indices i and j.
    shift: (P, 3) integer cell offsets S; the pair vector is ``x[j] − x[i] + S @ cell``.
    distance: (P,) Å.
    """

    centre: np.ndarray
    neighbor: np.ndarray
    shift: np.ndarray
    distance: np.ndarray


def find_neighbors(frame: Frame, cutoff: float) -> Neighbors:
    """All neighbours of all atoms of one frame, none dropped, for any cell and any mixture of periodic directions.

    Raises
    ------
    UserError
        when two atoms lie on one spot (closer than 0.05 Å); the sentence names frame and atoms.
    """
    from vesin import NeighborList

    # Box rows of non-periodic directions may be zero or arbitrary: vesin wants an invertible box.
    box = _complete_cell(frame)
    centre, neighbor, shift, distance = NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
        points=frame.positions, box=box, periodic=frame.pbc, quantities="ijSd"
    )
    if len(distance) and distance.min() < CLOSEST:
        k = int(np.argmin(distance))
        raise UserError(
            f"{frame.name}: atoms {min(centre[k], neighbor[k])} and {max(centre[k], neighbor[k])} are {distance[k]:.3f} Å "
            "apart (on one spot); repair or remove the frame"
        )
    order = np.lexsort((neighbor, distance, centre))
    return Neighbors(
        centre[order].astype(np.int64), neighbor[order].astype(np.int64), shift[order].astype(np.int64), distance[order]
    )


def _complete_cell(frame: Frame) -> np.ndarray:
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
