"""``dpa1 convert``: model files of DeePMD-kit ⇄ ``*.dpa1``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""

    @app.command()
    def convert(
        source: Annotated[Path, typer.Argument(metavar="IN", help="Model to read: .dpa1 .dp .yaml .pt .pth")],
        target: Annotated[Path, typer.Argument(metavar="OUT", help="Model to write: .dpa1 .dp .yaml")],
        branch: Annotated[
            str | None, typer.Option(help="Which model of a multi-task .pt, or which level of a .dpa1 with several.")
        ] = None,
    ) -> None:
        """Convert a model between dpa1 and DeePMD-kit; an existing OUT is never overwritten."""
        from dpa1.interop.convert import convert as run

        run(source, target, branch=branch)
        typer.echo(f"wrote {target}")
