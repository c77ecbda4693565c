"""``dpa1 relax``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpa1.cli.tabulate import Tabulate, build_tables
from dpa1.cli.terminal import Progress, keep_trace_in, new_file
from dpa1.errors import RunError, UserError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("relax")(relax_command)


def relax_command(
    model: Annotated[Path, typer.Argument(help="Model file: .dpa1, or DeePMD-kit's .dp .yaml .pt .pth.")],
    structure: Annotated[Path, typer.Argument(help="Where to start: anything ASE reads.")],
    output: Annotated[
        Path | None, typer.Option(help="New file, any ASE format.  [default: <structure>-relaxed.xyz]")
    ] = None,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    pressure: Annotated[float, typer.Option(help="GPa, with --cell.")] = 0.0,
    fmax: Annotated[float, typer.Option(help="eV/Å; stop when no force is larger.")] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Give up after so many steps.")] = 500,
    optimizer: Annotated[
        str | None, typer.Option(help="bfgs, lbfgs or fire.  [default: bfgs up to 200 atoms, lbfgs above]")
    ] = None,
    index: Annotated[int | None, typer.Option(help="Which structure of a file that holds several.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; the model's own by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    level: Annotated[str | None, typer.Option(help="Level of theory, for a model that holds several.")] = None,
    tabulate: Tabulate = False,
) -> None:
    """Relax positions, with --cell the cell too. Beside the result lie its path (…-path.xyz) and log (….csv).

    A relaxation that does not converge writes what it reached and exits with code 1.
    """
    stem = structure.name.split(".")[0]
    target = new_file(output or Path(f"{stem}-relaxed.xyz"))
    path = new_file(target.with_name(f"{target.stem}-path.xyz"))
    log = new_file(target.with_name(f"{target.stem}.csv"))
    if fmax <= 0:
        raise UserError(f"--fmax: must be positive, in eV/Å (given: {fmax:g})")
    if pressure and not cell:
        raise UserError("--pressure: acts only on a cell that relaxes; add --cell or drop it")

    from ase.io import write
    from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

    try:
        writable = get_ioformat(filetype(str(target), read=False)).can_write
    except UnknownFileTypeError:
        writable = False
    if not writable:
        raise UserError(f"{target}: ASE writes no such format; use a name such as {target.stem}.xyz")

    from dpa1.interop.load import load_potential
    from dpa1.simulate.relax import relax, with_results
    from dpa1.simulate.structure import read_structure

    potential = load_potential(model)
    atoms, _ = read_structure(structure, potential, index)
    calculator = potential.calculator(dtype=dtype, device=device, level=level, tabulate=tabulate)
    build_tables(calculator.potential, atoms.symbols)
    keep_trace_in(target.parent)
    progress = Progress(steps, "steps")
    try:
        end = relax(
            atoms, calculator, fmax=fmax, steps=steps, cell=cell, pressure=pressure, optimizer=optimizer, path=path, log=log,
            report=lambda step, energy, force: progress.update(step, f"{energy:.6f} eV  fmax {force:.4f} eV/Å"),
        )  # fmt: skip
    finally:
        progress.close()
    write(str(target), with_results(atoms))
    if not end.converged:
        raise RunError(
            f"not converged after {end.steps} steps: the largest force is {end.fmax:.4g} eV/Å, not {fmax:g}; {target} holds "
            "the structure reached; raise --steps, or continue from it"
        )
    typer.echo(
        f"converged in {end.steps} steps: {end.energy:.6f} eV, largest force {end.fmax:.4g} eV/Å; wrote {target}"
    )
