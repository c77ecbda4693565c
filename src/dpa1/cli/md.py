"""``dpa1 md``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.tabulate import Tabulate, build_tables
from dpa1.cli.terminal import Progress, check_new, draw, keep_trace_in
from dpa1.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms

    from dpa1.simulate.ase import Dpa1Calculator
    from dpa1.simulate.settings import MDSettings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("md")(md_command)


def md_command(
    model: Annotated[Path, typer.Argument(help="Model file: .dpa1, or DeePMD-kit's .dp .yaml .pt .pth.")],
    structure: Annotated[Path, typer.Argument(help="Where to start: anything ASE reads.")],
    temperature: Annotated[float | None, typer.Option(help="K; of the thermostat and the initial velocities.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps, counted from the very start.")] = None,
    pressure: Annotated[float | None, typer.Option(help="GPa; makes the run NPT (isotropic cell).")] = None,
    ensemble: Annotated[str | None, typer.Option(help="nve, nvt or npt; npt with --pressure, else nvt.")] = None,
    timestep: Annotated[float | None, typer.Option(help="fs.  [default: 1]")] = None,
    output: Annotated[Path | None, typer.Option(help="New folder.  [default: <structure>-md]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of velocities and thermostat.  [default: 0]")] = None,
    every: Annotated[int | None, typer.Option(help="Steps between log rows and frames.  [default: 10]")] = None,
    restart_every: Annotated[int | None, typer.Option(help="Steps between restart files.  [default: 100]")] = None,
    keep_velocities: Annotated[
        bool | None, typer.Option("--keep-velocities", help="Start from the structure's own velocities.")
    ] = None,
    thermostat_time: Annotated[float | None, typer.Option(help="fs.  [default: 100]")] = None,
    barostat_time: Annotated[float | None, typer.Option(help="fs.  [default: 1000]")] = None,
    index: Annotated[int | None, typer.Option(help="Which structure of a file that holds several.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; the model's own by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    level: Annotated[str | None, typer.Option(help="Level of theory, for a model that holds several.")] = None,
    tabulate: Tabulate = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, how long it takes and what fits; write nothing.")
    ] = False,
) -> None:
    """Molecular dynamics: NVE, NVT (Bussi's velocity rescaling) or NPT (Martyna–Tobias–Klein).

    The folder gets thermo.csv, thermo.png, trajectory.xyz, final.xyz, settings.json and restart.dpa1.
    """
    folder = output or Path(f"{structure.name.split('.')[0]}-md")
    given = {
        "temperature": temperature, "pressure": pressure, "ensemble": ensemble, "timestep": timestep, "seed": seed,
        "every": every, "restart_every": restart_every, "keep_velocities": keep_velocities,
        "thermostat_time": thermostat_time, "barostat_time": barostat_time,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if steps is None:
        raise UserError("--steps is missing: give the number of steps")
    settings = _resumed(folder, given) if resume else _new(folder, given)

    from dpa1.analysis.plots import thermo
    from dpa1.interop.load import load_potential
    from dpa1.simulate.md import run_md
    from dpa1.simulate.structure import read_structure

    potential = load_potential(model)
    atoms, frame = read_structure(structure, potential, index)
    calculator = potential.calculator(dtype=dtype, device=device, level=level, tabulate=tabulate)
    build_tables(calculator.potential, atoms.symbols)
    typer.echo(
        f"{settings.ensemble.upper()} of {atoms.get_chemical_formula()} ({frame.name}) at {settings.temperature:g} K"
        + (f" and {settings.pressure:g} GPa" if settings.pressure is not None else "")
        + f", {steps} steps of {settings.timestep:g} fs on {calculator.neighbors.device}, {calculator.precision}"
    )
    if dry_run:
        atoms.calc = calculator
        done = _done(folder, atoms) if resume else 0
        _plan(atoms, calculator, settings, steps, done, folder)
        return
    keep_trace_in(folder)
    report = _Report(steps, settings.timestep)
    try:
        run_md(atoms, calculator, settings, steps, folder, resume=resume, report=report)
    finally:
        report.close()
        if (folder / "thermo.csv").is_file():
            draw(lambda: thermo(folder / "thermo.csv"), folder / "thermo.png")
    if calculator.fixed_step is not None:
        typer.echo(str(calculator.fixed_step))
    typer.echo(f"done: {folder} holds thermo.csv, thermo.png, trajectory.xyz, final.xyz and restart.dpa1")


FILES = ("settings.json", "thermo.csv", "thermo.png", "trajectory.xyz", "restart.dpa1", "final.xyz")


def _done(folder: Path, atoms: Atoms) -> int:
    """Put the atoms where the run stands; the steps it has done."""
    from dpa1.simulate.restart import load_restart

    saved = load_restart(folder / "restart.dpa1")
    saved.apply_to_atoms(atoms)
    return int(saved.header["step"])


def _plan(atoms: Atoms, calculator: Dpa1Calculator, settings: MDSettings, steps: int, done: int, folder: Path) -> None:
    """What the run would do, from one real evaluation after another that loads and proves what it needs."""
    from dpa1.model.memory import fitting_atoms

    calculator.calculate(atoms, ("energy", "forces"))
    begun = time.perf_counter()
    calculator.calculate(atoms, ("energy", "forces"))
    seconds = time.perf_counter() - begun
    left = max(steps - done, 0)
    neighbors = float(calculator.coordination.mean())
    rows = left // settings.every + (0 if done else 1)
    typer.echo(f"{len(atoms)} atoms with {neighbors:.1f} neighbors each, {left} steps from step {done}")
    typer.echo(
        f"time per step {1e3 * seconds:.3g} ms (one evaluation, list reused), so {_duration(left * seconds)} in all, "
        f"{settings.timestep * 1e-6 / max(seconds, 1e-9) * 86400:.3g} ns/day"
    )
    if calculator.fixed_step is not None:
        typer.echo(str(calculator.fixed_step))
    typer.echo(f"would write into {folder}: {', '.join(FILES)}; {rows} rows and frames")
    for device, text in fitting_atoms(calculator.potential.config, calculator.potential.dtype, neighbors).items():
        typer.echo(f"fits on {device} beside this structure: {text}")
    typer.echo("nothing was written")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.3g} s" if minutes < 2 else f"{minutes:.3g} min" if hours < 2 else f"{hours:.3g} h"


def _new(folder: Path, given: dict[str, Any]) -> MDSettings:
    from dpa1.config.base import parse
    from dpa1.simulate.settings import MDSettings

    if "temperature" not in given:
        raise UserError("--temperature is missing: give it in K (it also sets the initial velocities of an nve run)")
    check_new(folder)
    return parse(MDSettings, given, "md")


def _resumed(folder: Path, given: dict[str, Any]) -> MDSettings:
    """The settings of the run, which options on the command line must not contradict."""
    from dpa1.config.base import parse
    from dpa1.simulate.restart import load_restart
    from dpa1.simulate.settings import MDSettings

    saved = load_restart(folder / "restart.dpa1").settings.model_dump()
    for key, value in given.items():
        if value != saved[key] and key not in ("every", "restart_every"):
            option = "--" + key.replace("_", "-")
            raise UserError(
                f"{option}: the run in {folder} has {saved[key]}, not {value}; drop the option, or start a new run"
            )
    return parse(MDSettings, {**saved, **given}, str(folder))


class _Report:
    """Step, rate, time left and the state of the system, as the log grows."""

    def __init__(self, steps: int, timestep: float) -> None:
        self.steps, self.timestep = steps, timestep
        self.progress: Progress | None = None

    def __call__(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        if self.progress is None:
            self.progress = Progress(self.steps, "steps", done=step)
            self.first, self.start = step, time.monotonic()
        text = f"{row['temperature_K']:.0f} K  drift {row['drift_meV_per_atom']:+.3f} meV/atom"
        if row["pressure_GPa"] == row["pressure_GPa"]:
            text += f"  {row['pressure_GPa']:.3g} GPa"
        elapsed = time.monotonic() - self.start
        if step > self.first and elapsed > 0:
            text += f"  {(step - self.first) * self.timestep * 1e-6 / elapsed * 86400:.3g} ns/day"
        self.progress.update(step, text)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
