"""``dpa1 distill``: a teacher and structures in, a fast student out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dpa1.cli.terminal import keep_trace_in
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
    from dpa1.data.read import iter_frames
    from dpa1.distill import distill, table

    found: Any = _factory(teacher) if teacher.startswith(MARK) else teacher
    result = distill(
        found, iter_frames(structures), output=output, size=size, cutoff=cutoff, augment=augment, rattle=rattle,
        strain=strain, steps=steps, level=level, seed=seed,
    )  # fmt: skip
    typer.echo(table(result))


def _factory(text: str) -> Any:
    """The calculator that ``python:module.function`` makes."""
    module, _, function = text.removeprefix(MARK).rpartition(".")
    if not module or not function:
        raise UserError(f"'{text}': a teacher in Python looks like python:my_module.make_calculator")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"'{text}': cannot be imported ({error}); check the name and the Python path") from None
    if not callable(make):
        raise UserError(f"'{text}': is no function; name one that returns an ASE calculator")
    return make()
