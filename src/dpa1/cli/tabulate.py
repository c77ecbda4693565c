"""The option ``--tabulate`` of the verbs that evaluate a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

Tabulate = Annotated[
    bool, typer.Option("--tabulate", help="Look parts of the networks up in tables: faster, forces within 1e-6 eV/Å.")
]


def build_tables(potential: Potential, elements: Iterable[str]) -> None:
    """Build the tables for these elements now, where the potential has any, and say what was measured."""
    if potential.tables is not None:
        potential.build_tables(elements)
        report_tables(potential)


def report_tables(potential: Potential) -> None:
    """One line for each set of tables that was built, to the terminal's error stream."""
    for report in potential.tables.reports if potential.tables is not None else ():
        typer.echo(str(report), err=True)
