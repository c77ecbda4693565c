"""The command line ``dpa1``: parse, call, and turn every error into one sentence and an exit code.

Exit codes: 0 done; 1 the run failed (one sentence, and where the full trace lies); 2 the call or a file was wrong.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from dpa1 import __version__
from dpa1.cli.terminal import forget_trace_folder, write_trace
from dpa1.errors import InterruptedRunError, RunError, UserError
from dpa1.kernels.allocator import keep_freed_memory

VERBS = ("train", "finetune", "distill", "evaluate", "data", "md", "relax", "show", "elements", "convert", "doctor")

app = typer.Typer(
    name="dpa1",
    help="DPA-1 interatomic potentials: train, evaluate and simulate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dpa1 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for verb in VERBS:
    import_module(f"dpa1.cli.{verb}").register(app)


def main() -> None:
    """Entry point."""
    forget_trace_folder()
    keep_freed_memory()
    try:
        app()
    except UserError as error:
        _stop(f"Error: {error}", 2)
    except InterruptedRunError as error:
        _stop(f"Stopped: {error}", 1)
    except RunError as error:
        _stop(f"Failed: {error}\nFull trace: {write_trace(error)}", 1)
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        _stop(f"Failed: {type(error).__name__}: {text}\nFull trace: {write_trace(error)}", 1)
    except SystemExit as stop:
        if stop.code == 130:  # typer's translation of Ctrl-C
            _stop("Stopped by the keyboard.", 1)
        raise


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
