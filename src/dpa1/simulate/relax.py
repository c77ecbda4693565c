"""Relaxation of positions, and of the cell, with ASE's optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from dpa1.errors import RunError, UserError, did_you_mean
from dpa1.frames import GPA

if TYPE_CHECKING:
    from dpa1.simulate.ase import Dpa1Calculator

OPTIMIZERS = ("bfgs", "lbfgs", "fire")
FEW_ATOMS = 200  # up to here BFGS, which never climbs towards a saddle but diagonalises a 3N × 3N matrix each step

Report = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Relaxation:
    """How it ended: largest force eV/Å, energy eV, steps taken."""

    converged: bool
    steps: int
    energy: float
    fmax: float


def relax(
    atoms: Atoms,
    calculator: Dpa1Calculator,
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    pressure: float = 0.0,
    optimizer: str | None = None,
    path: Path | None = None,
    log: Path | None = None,
    report: Report | None = None,
) -> Relaxation:
    """Move ``atoms`` in place until no force exceeds ``fmax`` (eV/Å); with ``cell`` the cell too (``FrechetCellFilter``).

    pressure: GPa, with ``cell``. optimizer: bfgs, lbfgs or fire; BFGS up to 200 atoms and LBFGS above by default. path: extended XYZ of every step. log: CSV of step, energy, largest force, volume.

    Raises
    ------
    UserError
        for an unknown optimizer, or a cell that cannot relax because the structure is not fully periodic.
    RunError
        when a step leads where the model cannot follow (two atoms on one spot, numbers not finite).
    """
    if optimizer is None:
        optimizer = "bfgs" if len(atoms) <= FEW_ATOMS else "lbfgs"
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"optimizer: unknown '{optimizer}'{did_you_mean(optimizer, OPTIMIZERS)}; use bfgs, lbfgs or fire"
        )
    if cell and not atoms.pbc.all():
        raise UserError(
            "cell: only a structure that is periodic in all three directions has a cell to relax; drop --cell"
        )
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS, FIRE, LBFGS

    atoms.calc = calculator
    target: Any = FrechetCellFilter(atoms, scalar_pressure=pressure * GPA) if cell else atoms
    optimizer_class: Any = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}[optimizer]
    dynamics = optimizer_class(target, logfile=None)
    if log is not None:
        log.write_text("step,energy_eV,fmax_eV_per_A,volume_A3\n", encoding="utf-8")
    largest = np.inf

    def note() -> None:
        nonlocal largest
        largest = float(np.linalg.norm(target.get_forces().reshape(-1, 3), axis=1).max())
        energy = atoms.get_potential_energy()
        if log is not None:
            volume = f"{atoms.get_volume():.10g}" if atoms.cell.rank == 3 else ""
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{dynamics.nsteps},{energy:.10g},{largest:.6g},{volume}\n")
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                write_extxyz(file, [with_results(atoms)])
        if report is not None:
            report(dynamics.nsteps, energy, largest)

    dynamics.attach(note)
    try:
        converged = bool(dynamics.run(fmax=fmax, steps=steps))
    except (UserError, RunError, np.linalg.LinAlgError) as error:
        if dynamics.nsteps == 0:
            raise
        raise RunError(
            f"stopped at step {dynamics.nsteps}: {error}; try --optimizer fire, or a better starting structure"
        ) from error
    return Relaxation(converged, dynamics.nsteps, float(atoms.get_potential_energy()), largest)


def with_results(atoms: Atoms) -> Atoms:
    """A copy with energy, forces and stress of the present structure, free of labels its file may have held."""
    copy = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        momenta=atoms.get_momenta() if atoms.has("momenta") else None,
        masses=atoms.get_masses() if atoms.has("masses") else None,
        constraint=atoms.constraints,
    )
    results = atoms.calc.results
    copy.calc = SinglePointCalculator(
        copy, **{key: results[key] for key in ("energy", "forces", "stress") if key in results}
    )
    return copy
