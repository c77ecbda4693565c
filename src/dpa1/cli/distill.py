"""``dpa1 distill``: a teacher and structures in, a fast student out."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dpa1.cli.terminal import Progress, check_new, keep_trace_in
from dpa1.errors import UserError

MARK = "python:"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("distill")(distill_command)


def distill_command(
    teacher: Annotated[
        str,
        typer.Argument(help="Model file or shipped model, or python:MODULE.FUNCTION that returns an ASE calculator."),
    ],
    structures: Annotated[list[str], typer.Argument(help="Structures: files, folders or patterns that dpa1 reads.")],
    output: Annotated[Path, typer.Option(help="New run folder.")] = Path("distilled"),
    size: Annotated[Literal["small", "base", "large"], typer.Option(help="Of the student.")] = "small",
    cutoff: Annotated[float | None, typer.Option(min=0.5, help="Å; the teacher's when not given, else 6.")] = None,
    augment: Annotated[int, typer.Option(min=0, help="Rattled and strained copies of each structure.")] = 0,
    rattle: Annotated[float, typer.Option(min=0.0, help="Å, standard deviation of the copies' displacements.")] = 0.05,
    strain: Annotated[float, typer.Option(min=0.0, max=0.5, help="Largest strain of the copies.")] = 0.02,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 10_000,
    level: Annotated[str | None, typer.Option(help="Level of theory of a teacher that holds several.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds split, copies and training.")] = 1,
) -> None:
    """Train a student without attention layers on a teacher's labels; loss of accuracy and gain in speed are printed."""
    keep_trace_in(output)
    check_new(output)
    found: Any = _factory(teacher) if teacher.startswith(MARK) else _model(teacher)
    from dpa1.data.read import iter_frames
    from dpa1.distill import distill, table

    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress(total, "structures"))
        shown[0].update(done, "labelled by the teacher")
        if done == total:
            shown[0].close()

    result = distill(
        found, iter_frames(structures), output=output, size=size, cutoff=cutoff, augment=augment, rattle=rattle,
        strain=strain, steps=steps, level=level, seed=seed, progress=progress,
    )  # fmt: skip
    typer.echo(table(result))


def _model(teacher: str) -> Any:
    """The model behind a path or a name; what is neither may have been meant as a calculator."""
    from dpa1.interop.load import load_potential

    try:
        return load_potential(teacher)
    except UserError as error:
        if Path(teacher).exists():
            raise
        raise UserError(f"{error}; an ASE calculator is given as python:MODULE.FUNCTION") from None


def _factory(text: str) -> Any:
    """The calculator that ``python:module.function`` makes; modules of the current folder count."""
    module, _, function = text.removeprefix(MARK).rpartition(".")
    if not module or not function:
        raise UserError(f"'{text}': a teacher in Python looks like python:my_module.make_calculator")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        make = getattr(import_module(module), function)
    except Exception as error:
        raise UserError(
            f"'{text}': cannot be imported ({_reason(error)}); check the name, and that the module is installed or in "
            "this folder"
        ) from None
    if not callable(make):
        return make
    try:
        return make()
    except Exception as error:
        raise UserError(
            f"'{text}': made no calculator ({_reason(error)}); give a function without arguments that returns one"
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
