"""The restart file of an MD run: structure, velocities, thermostat, barostat and random numbers, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpa1.config.base import parse
from dpa1.container import read_container, write_container
from dpa1.errors import UserError
from dpa1.model.file import digest_of
from dpa1.simulate.integrators import get_state, set_state
from dpa1.simulate.settings import MDSettings

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

KIND, FORMAT = "restart", 1


@dataclass(frozen=True)
class Restart:
    """What a restart file holds; arrays in ASE's units."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]
    settings: MDSettings
    path: Path

    def apply_to_atoms(self, atoms: Atoms) -> None:
        """Move ``atoms`` to where the run was.

        Raises
        ------
        UserError
            when these are other atoms, or their calculator holds another model, precision or level.
        """
        if not np.array_equal(self.header["numbers"], atoms.numbers):
            raise UserError(f"{self.path}: belongs to another structure; give the one the run was started with")
        if self.header["model"] != _identity(atoms):
            raise UserError(
                f"{self.path}: was written with another model, dtype or level; give the same, or start a new run"
            )
        atoms.set_pbc(self.header["pbc"])
        atoms.set_cell(self.arrays["cell"])
        atoms.set_positions(self.arrays["positions"], apply_constraint=False)
        atoms.set_momenta(self.arrays["momenta"], apply_constraint=False)

    def apply_to_integrator(self, dynamics: MolecularDynamics, rng: np.random.Generator) -> None:
        """Continue thermostat, barostat and random numbers."""
        set_state(dynamics, self.settings.ensemble, self.arrays)
        rng.bit_generator.state = self.header["rng"]


def save_restart(
    path: Path,
    atoms: Atoms,
    dynamics: MolecularDynamics,
    settings: MDSettings,
    rng: np.random.Generator,
    progress: dict[str, float],
) -> None:
    """Replace the restart file atomically; ``progress`` is kept in its header."""
    header = {
        **progress,
        "settings": settings.model_dump(mode="json"),
        "numbers": atoms.numbers.tolist(),
        "pbc": atoms.pbc.tolist(),
        "model": _identity(atoms),
        "rng": rng.bit_generator.state,
    }
    arrays = {
        "positions": atoms.get_positions(),
        "momenta": atoms.get_momenta(),
        "cell": np.array(atoms.cell),
        **get_state(dynamics, settings.ensemble),
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    write_container(path, KIND, FORMAT, header, tensors)


def load_restart(path: Path) -> Restart:
    """Read a restart file.

    Raises
    ------
    UserError
        when it is missing, damaged or no restart file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; there is no run to resume in this folder")
    _, header, tensors = read_container(path, KIND, FORMAT)
    settings = parse(MDSettings, header["settings"], str(path))
    return Restart(header, {name: tensor.numpy() for name, tensor in tensors.items()}, settings, path)


def _identity(atoms: Atoms) -> str:
    """Of the model, precision and level behind a calculator."""
    return f"{digest_of(atoms.calc.potential)} {atoms.calc.level}"
