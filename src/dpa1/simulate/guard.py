"""Notices within one step that a simulation has left what makes sense, and puts the last good structure back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dpa1.errors import RunError
from dpa1.simulate.integrators import temperature

if TYPE_CHECKING:
    from ase import Atoms

MAX_MOVE = 0.5  # Å in one step: hydrogen at 300 K moves 0.03 Å in 1 fs
MAX_HEATING = 20.0  # times the target temperature (at least 300 K): beyond any fluctuation, also of few atoms


class Guard:
    """Checks each step of an MD run.

    A step is bad when an atom moved by more than 0.5 Å, the temperature exceeds twenty times its target, an atom that
    had neighbors within the cutoff has none left, or a number is not finite.
    """

    def __init__(self, atoms: Atoms, target: float) -> None:
        self.atoms, self.limit = atoms, MAX_HEATING * max(target, 300.0)
        self.bound = atoms.calc.coordination > 0
        self.remember()

    def remember(self) -> None:
        """Keep the present structure as the last good one."""
        atoms = self.atoms
        self.positions, self.momenta = atoms.get_positions(), atoms.get_momenta()
        self.cell = np.array(atoms.cell)
        self.last_results: dict[str, Any] = atoms.calc.results

    def check(self) -> None:
        """Raise ``RunError`` with a sentence about what went wrong in the step since ``remember``."""
        atoms = self.atoms
        if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.get_momenta()).all():
            raise RunError("positions or velocities are no longer finite")
        # Relative to the deformation of the cell, which moves atoms too.
        before = self.positions
        if atoms.cell.rank == 3 and not np.array_equal(self.cell, np.array(atoms.cell)):
            before = before @ np.linalg.solve(self.cell, np.array(atoms.cell))
        moved = np.linalg.norm(atoms.positions - before, axis=1)
        k = int(np.argmax(moved))
        if moved[k] > MAX_MOVE:
            raise RunError(f"the atoms fly apart: atom {k} ({atoms.symbols[k]}) moved {moved[k]:.2f} Å in one step")
        now = temperature(atoms)
        if now > self.limit:
            raise RunError(f"the temperature explodes: it reached {now:.0f} K")
        lost = np.flatnonzero(self.bound & (atoms.calc.coordination == 0))
        if len(lost):
            k = int(lost[0])
            raise RunError(
                f"the atoms fly apart: atom {k} ({atoms.symbols[k]}) has no neighbor within the cutoff any more"
            )

    def restore(self) -> None:
        """Put the last good structure back."""
        self.atoms.set_cell(self.cell)
        self.atoms.set_positions(self.positions, apply_constraint=False)
        self.atoms.set_momenta(self.momenta, apply_constraint=False)
