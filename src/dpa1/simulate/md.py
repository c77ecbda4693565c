"""Molecular dynamics with a log, a trajectory and exact restarts.

The run directory holds ``settings.json``, ``thermo.csv``, ``trajectory.xyz`` (extended XYZ), ``restart.dpa1`` and at the
end ``final.xyz``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io.extxyz import write_extxyz

from dpa1.errors import InterruptedRunError, RunError, UserError
from dpa1.frames import GPA
from dpa1.signals import stop_signals
from dpa1.simulate.guard import Guard
from dpa1.simulate.integrators import conserved_energy, make_integrator, rest, set_velocities, temperature
from dpa1.simulate.relax import with_results
from dpa1.simulate.restart import load_restart, save_restart
from dpa1.simulate.settings import MDSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa1.simulate.ase import Dpa1Calculator

COLUMNS = (
    "step", "time_fs", "temperature_K", "potential_eV", "kinetic_eV", "total_eV", "drift_meV_per_atom",
    "pressure_GPa", "volume_A3",
)  # fmt: skip


Report = Callable[[dict[str, float]], None]


def run_md(
    atoms: Atoms,
    calculator: Dpa1Calculator,
    settings: MDSettings,
    steps: int,
    folder: Path,
    *,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, float]:
    """Run until ``steps`` steps from the very start are done; return the last row of the log.

    ``atoms`` is moved in place. ``report`` gets every row of ``thermo.csv`` as it is written.

    Raises
    ------
    UserError
        for a structure or settings that cannot be run, or a restart that does not fit them.
    RunError
        when the atoms fly apart (the trajectory then ends with the last good frame), and after Ctrl-C or SIGTERM
        (a restart file of the last whole step is written first).
    """
    atoms.calc = calculator
    run = _Run(atoms, settings, folder, report)
    if resume:
        run.resume(steps)
    else:
        run.begin()
    with stop_signals() as asked:
        run.loop(steps, asked.is_set)
    return run.row


class _Run:
    def __init__(self, atoms: Atoms, settings: MDSettings, folder: Path, report: Report | None) -> None:
        self.atoms, self.settings, self.folder, self.report = atoms, settings, folder, report
        self.rng = np.random.default_rng(settings.seed)
        self.step, self.drawn, self.start_energy = 0, -1, 0.0
        self.row: dict[str, float] = {}
        self.log, self.trajectory = folder / "thermo.csv", folder / "trajectory.xyz"
        self.restart = folder / "restart.dpa1"

    def begin(self) -> None:
        settings, atoms = self.settings, self.atoms
        if self.log.exists():
            raise UserError(f"{self.folder}: already holds a run; resume it, or choose another folder")
        if settings.keep_velocities:
            rest(atoms)
        else:
            set_velocities(atoms, settings.temperature, self.rng)
        if temperature(atoms) == 0.0:
            reason = (
                "has no velocities; drop keep_velocities" if settings.keep_velocities else "has no atom free to move"
            )
            raise UserError(f"temperature: the structure {reason}")
        self.dynamics: Any = make_integrator(atoms, settings, self.rng)
        atoms.get_forces()  # a structure the model cannot take fails here, before anything is written
        self.guard = Guard(atoms, settings.temperature)
        self.start_energy = conserved_energy(self.dynamics, settings.ensemble)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings.model_dump(mode="json"), indent=2)
        (self.folder / "settings.json").write_text(text + "\n", encoding="utf-8")
        self.log.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        self.trajectory.write_text("", encoding="utf-8")
        self._write_row()
        self._save()

    def resume(self, steps: int) -> None:
        saved = load_restart(self.restart)
        saved.apply_to_atoms(self.atoms)
        self.dynamics = make_integrator(self.atoms, self.settings, self.rng)
        saved.apply_to_integrator(self.dynamics, self.rng)
        self.step = self.drawn = saved.header["step"]
        self.start_energy = saved.header["start_energy"]
        if self.step >= steps:
            raise UserError(f"{self.folder}: the run is at step {self.step} already; ask for more than {steps} steps")
        # A killed run may have logged beyond its last restart file: those lines would come twice.
        for path, key in ((self.log, "log_bytes"), (self.trajectory, "trajectory_bytes")):
            size = saved.header[key]
            if not path.is_file() or path.stat().st_size < size:
                raise UserError(f"{path}: is missing or shorter than when the run was saved; start a new run")
            with path.open("r+b") as file:
                file.truncate(size)
        self.atoms.get_forces()
        self.guard = Guard(self.atoms, self.settings.temperature)
        self.row = self._measure()

    def loop(self, steps: int, interrupted: Callable[[], bool]) -> None:
        every = self.settings.every
        save_every = math.ceil(self.settings.restart_every / every) * every
        while self.step < steps:
            self._advance()
            if self.step % every == 0 or self.step == steps:
                self._write_row()
            stop = interrupted() and self.step < steps
            if self.step % save_every == 0 or self.step == steps or stop:
                self._save()
            if stop:
                self._write_final()
                raise InterruptedRunError(
                    f"interrupted after step {self.step} of {steps}; continue with --resume --output {self.folder}"
                )
        self._write_final()

    def _advance(self) -> None:
        self.guard.remember()
        try:
            self.dynamics.step()
            self.atoms.get_forces()
            self.guard.check()
        except (RunError, UserError, OverflowError, np.linalg.LinAlgError) as error:
            self.guard.restore()
            self.atoms.calc.results = self.guard.last_results
            if self.drawn != self.step:
                self._write_frame()
            self._write_final()
            raise RunError(
                f"stopped after step {self.step} ({self.step * self.settings.timestep:g} fs): {error}; the last good "
                f"frame ends {self.trajectory}; try a smaller --timestep, a relaxed start, or a model trained on such "
                "structures"
            ) from error
        self.step += 1

    def _measure(self) -> dict[str, float]:
        atoms = self.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        drift = (conserved_energy(self.dynamics, self.settings.ensemble) - self.start_energy) / len(atoms)
        pressure = volume = math.nan
        if atoms.pbc.all():
            volume = atoms.get_volume()
            pressure = -float(np.mean(atoms.get_stress(include_ideal_gas=True)[:3])) / GPA
        values = (
            self.step, self.step * self.settings.timestep, temperature(atoms), potential, kinetic, potential + kinetic,
            1e3 * drift, pressure, volume,
        )  # fmt: skip
        return dict(zip(COLUMNS, map(float, values), strict=True))

    def _write_row(self) -> None:
        self.row = self._measure()
        cells = [str(self.step), *("" if math.isnan(v) else f"{v:.12g}" for v in list(self.row.values())[1:])]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(",".join(cells) + "\n")
        self._write_frame()
        if self.report is not None:
            self.report(self.row)

    def _write_frame(self) -> None:
        self.drawn = self.step
        with self.trajectory.open("a", encoding="utf-8") as file:
            write_extxyz(file, [self._snapshot()])

    def _write_final(self) -> None:
        with (self.folder / "final.xyz").open("w", encoding="utf-8") as file:
            write_extxyz(file, [self._snapshot()])

    def _snapshot(self) -> Atoms:
        copy = with_results(self.atoms)
        copy.info.update(step=self.step, time_fs=self.step * self.settings.timestep)
        return copy

    def _save(self) -> None:
        progress = {
            "step": self.step,
            "start_energy": self.start_energy,
            "log_bytes": self.log.stat().st_size,
            "trajectory_bytes": self.trajectory.stat().st_size,
        }
        save_restart(self.restart, self.atoms, self.dynamics, self.settings, self.rng, progress)
