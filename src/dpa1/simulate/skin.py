"""A neighbour list that outlives many steps: built at cutoff + skin, filtered to the cutoff each time, exact always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.frames import make_frame
from dpa1.neighbors import CLOSEST, find_neighbors
from dpa1.neighbors_device import find_on_device

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class _Reference:
    """The structure a list was built for."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


class SkinList:
    """Turns successive ``Atoms`` into Batches of one frame, searching for neighbours only when it must.

    A pair absent from the list was farther than cutoff + skin. After the cell deformed by F (rows: h = h₀F) and the
    atoms moved by at most u from where F alone would put them, it is farther than (cutoff + skin)·σ_min(F) − 2u; the
    list is reused while that exceeds the cutoff. With a fixed cell this is the usual "no atom moved by skin/2".

    Pairs come in an order that does not depend on when the list was built, so a restarted run repeats the
    uninterrupted one bit by bit.

    Parameters
    ----------
    cutoff, skin: Å.
    """

    def __init__(self, cutoff: float, skin: float, device: torch.device) -> None:
        self.cutoff, self.skin, self.device = cutoff, skin, device
        self.builds = 0
        self._reference: _Reference | None = None
        self._shift_cell: np.ndarray | None = None

    def batch(self, atoms: Atoms) -> Batch:
        """One frame with exactly the pairs within the cutoff.

        Raises
        ------
        UserError
            for NaN positions, an unusable cell, or two atoms on one spot.
        """
        self.update(atoms)
        cell = np.array(atoms.cell)
        if self._shift_cell is None or not np.array_equal(cell, self._shift_cell):
            self._cell = torch.from_numpy(cell).to(self.device)
            self._shift = self._offset @ self._cell
            self._shift_cell = cell
        positions = torch.from_numpy(atoms.get_positions()).to(self.device)
        centre, neighbor, shift = self._centre, self._neighbor, self._shift
        vectors = positions.index_select(0, neighbor).sub_(positions.index_select(0, centre)).add_(shift)
        x, y, z = vectors.unbind(1)
        square = x * x + y * y + z * z
        if len(square) and bool(square.min() < CLOSEST**2):
            self.build(atoms)  # raises, naming the atoms
        keep = torch.nonzero(square <= self.cutoff**2).squeeze(-1)
        return Batch(
            numbers=self._numbers,
            positions=positions,
            cell=self._cell.unsqueeze(0),
            frame=torch.zeros_like(self._numbers),
            n_atoms=torch.tensor([len(self._numbers)], device=self.device),
            centre=centre.index_select(0, keep),
            neighbor=neighbor.index_select(0, keep),
            shift=shift.index_select(0, keep),
            energy=self._nan,
            forces=self._nan.expand(len(self._numbers), 3),
            virial=self._nan.expand(1, 3, 3),
            weight=torch.ones_like(self._nan),
            names=("structure, frame 0",),
        )

    def update(self, atoms: Atoms) -> None:
        """Search anew if a pair within the cutoff could be missing from the list.

        Raises
        ------
        UserError
            as ``batch``.
        """
        if not self._reusable(atoms):
            self.build(atoms)

    @property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers (N,) and the list: centre, neighbor (P,) and offset (P, 3) in cells, sorted by centre."""
        return self._numbers, self._centre, self._neighbor, self._offset

    def _reusable(self, atoms: Atoms) -> bool:
        old = self._reference
        if old is None or not np.array_equal(old.numbers, atoms.numbers) or not np.array_equal(old.pbc, atoms.pbc):
            return False
        cell = np.array(atoms.cell)
        moved, smallest = atoms.positions, 1.0
        if np.array_equal(cell, old.cell):
            moved = moved - old.positions
        elif old.pbc.any() and abs(np.linalg.det(old.cell)) > 0.0:
            deformation = np.linalg.solve(old.cell, cell)
            smallest = float(np.linalg.svd(deformation, compute_uv=False)[-1])
            moved = moved - old.positions @ deformation
        else:
            return False
        # A common translation changes no distance. NaN compares false and leads to a build, which names the atom.
        moved = moved - moved.mean(axis=0)
        farthest = np.sqrt(np.square(moved).sum(axis=1).max())
        return bool((self.cutoff + self.skin) * smallest - 2.0 * farthest > self.cutoff)

    def build(self, atoms: Atoms) -> None:
        """Search anew.

        Raises
        ------
        UserError
            as ``batch``.
        """
        self._reference = None
        frame = make_frame(atoms.numbers, atoms.get_positions(), np.array(atoms.cell), atoms.pbc)
        if self.device.type == "cpu":
            found = find_neighbors(frame, self.cutoff + self.skin, torch.get_num_threads())
            self._centre, self._neighbor = torch.from_numpy(found.centre), torch.from_numpy(found.neighbor)
            self._offset = torch.from_numpy(found.shift.astype(np.float64))
        else:
            self._centre, self._neighbor, self._offset = find_on_device(frame, self.cutoff + self.skin, self.device)
        self._numbers = torch.from_numpy(frame.numbers).to(self.device)
        self._nan = torch.full((1,), float("nan"), dtype=torch.float64, device=self.device)
        self._shift_cell = None
        self._reference = _Reference(frame.numbers, frame.positions, frame.cell, frame.pbc)
        self.builds += 1


def coordination(batch: Batch) -> Tensor:
    """(N,) number of neighbours within the cutoff of each atom."""
    return torch.bincount(batch.centre, minlength=len(batch.numbers))
