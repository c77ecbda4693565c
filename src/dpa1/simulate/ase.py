"""The ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError, all_changes

from dpa1.errors import RunError, counted
from dpa1.frames import matrix_to_voigt
from dpa1.model import memory
from dpa1.model.fixed import Answer
from dpa1.model.inference import check_numbers, frozen_copy, pick_device
from dpa1.simulate.skin import SkinList, coordination
from dpa1.simulate.step import FixedStep

if TYPE_CHECKING:
    from ase import Atoms

    from dpa1.model.potential import Potential

SKIN = 0.5  # Å


class Dpa1Calculator(BaseCalculator):
    """Energy, atomic energies, forces (eV, eV/Å) and stress (eV/Å³, ASE's sign) of a potential.

    It holds a frozen copy of the potential, so neither its precision nor later training touches the original.
    Stress exists for cells with three vectors; asking for it otherwise raises ``PropertyNotImplementedError``.

    Parameters
    ----------
    potential: a ``dpa1.Potential``.
    dtype: "float32" or "float64"; that of the potential when not given. Energies are summed in float64 in any case.
    device: "cpu", "cuda", "cuda:1", "auto" (a GPU where there is one); that of the potential when not given.
    skin: Å; the neighbour list is reused until atoms moved by half of it. It changes speed, never a result.
    level: level of theory, for a potential that holds several.
    fixed_shapes: compute steps in tensors of fixed shape, which on a GPU are replayed as one CUDA graph (up to some thousand
        atoms). When not given: on a GPU. ``fixed_step`` tells what came of it: its ``refusal`` why a structure is not.
    tabulate: evaluate tables where the potential allows it (``Potential.tabulated``): faster, forces within 1e-6 eV/Å.

    Raises
    ------
    UserError
        for an unknown dtype, device or level; when used, for an element the model does not know (the known ones are
        listed), NaN positions, or two atoms on one spot.
    RunError
        when the model returns an energy or force that is not finite, or tables cannot be made accurate.
    """

    name = "dpa1"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 as ASE declares it

    def __init__(
        self,
        potential: Potential,
        *,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        skin: float = SKIN,
        level: str | None = None,
        tabulate: bool = False,
        fixed_shapes: bool | None = None,
    ) -> None:
        chosen = {"dtype": dtype, "level": level, "skin": skin, "tabulate": tabulate, "fixed_shapes": fixed_shapes}
        super().__init__(parameters=chosen)
        place = potential.energy_bias.device if device is None else pick_device(device)
        self.potential = frozen_copy(potential, dtype, place)
        if tabulate and self.potential.tables is None:
            self.potential = self.potential.tabulated()
        index = self.potential.level_index(level)  # an unknown level fails here, not at the first step
        self.level = level
        self.neighbors = SkinList(potential.cutoff, skin, place)
        fixed = place.type == "cuda" if fixed_shapes is None else fixed_shapes
        self.fixed_step = FixedStep(self.potential, self.neighbors, index) if fixed else None
        self.coordination = np.zeros(0, dtype=np.int64)
        self._checked = np.zeros(0, dtype=np.int64)

    @property
    def precision(self) -> str:
        """Of the descriptor: "float32" or "float64"."""
        return str(self.potential.dtype).removeprefix("torch.")

    def calculate(
        self,
        atoms: Atoms,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; everything is computed at once, since forces cost one backward pass and stress nothing."""
        full_cell = atoms.cell.rank == 3
        if "stress" in properties and not full_cell:
            raise PropertyNotImplementedError(
                f"stress needs a cell with three vectors; this structure has {atoms.cell.rank} (its volume is not defined)"
            )
        self._check(atoms)
        with self._enough(atoms):
            found = self.fixed_step.predict(atoms) if self.fixed_step is not None else None
            if found is None:
                found = self._ordinary(atoms, full_cell)
        energies, forces = found.energies.numpy(), found.forces.numpy()
        energy = float(found.energies.sum())
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            bad = np.flatnonzero(~np.isfinite(forces).all(axis=1))
            where = f"forces of atom {bad[0]}" if len(bad) else "energy"
            raise RunError(f"the {where} of this structure are not finite: the model cannot describe it")
        self.coordination = found.neighbors.numpy()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies,
            "forces": forces,
        }
        if full_cell:
            self.results["stress"] = matrix_to_voigt(-found.virial.numpy() / atoms.get_volume())

    def _ordinary(self, atoms: Atoms, virial: bool) -> Answer:
        batch = self.neighbors.batch(atoms)
        out = self.potential.predict(batch, virial=virial, level=self.level)
        matrix = out["virial"][0] if virial else out["energy"].new_full((3, 3), torch.nan)
        parts = out["atomic_energy"], out["forces"], matrix, coordination(batch)
        energies, forces, matrix, degrees = (part.cpu() for part in parts)
        return Answer(energies, forces, matrix, degrees, closest=torch.nan, needed=0)

    def get_descriptor(self, atoms: Atoms) -> np.ndarray:
        """(N, D) descriptors of all atoms, invariant to translation, rotation and the order of like atoms."""
        self._check(atoms)
        with self._enough(atoms):
            prediction = self.potential.predict(
                self.neighbors.batch(atoms), forces=False, virial=False, descriptor=True, level=self.level
            )
        return prediction["descriptor"].cpu().numpy()

    def _enough(self, atoms: Atoms) -> AbstractContextManager[None]:
        """The neighbour list takes memory, too, before the potential adapts its blocks to what is free."""
        return memory.enough(counted(len(atoms), "atom"), memory.FEWER, self.potential.energy_bias.device)

    def _check(self, atoms: Atoms) -> None:
        if not np.array_equal(self._checked, atoms.numbers):
            check_numbers(atoms.numbers, self.potential)
            self._checked = atoms.numbers.copy()

    def todict(self) -> dict[str, Any]:
        """What ASE stores beside a trajectory."""
        return {key: value for key, value in self.parameters.items() if value is not None}
