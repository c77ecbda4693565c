"""``dpa1 train``: a configuration in, a trained model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dpa1.cli.terminal import draw, keep_trace_in
from dpa1.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train", context_settings={"allow_extra_args": True})(train)


def _keys(asked: bool) -> None:
    if asked:
        from dpa1.config.reference import markdown

        typer.echo(markdown(), nl=False)
        raise typer.Exit


def _schema(asked: bool) -> None:
    if asked:
        from dpa1.config.reference import schema

        typer.echo(schema())
        raise typer.Exit


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML, TOML or JSON configuration, or a DeePMD-kit input.json.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in the output folder.")
    ] = False,
    output: Annotated[str | None, typer.Option(help="Run folder, instead of the configuration's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the configuration's.")] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Print every key with its default and meaning.", is_eager=True, callback=_keys),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors.", is_eager=True, callback=_schema)
    ] = False,
) -> None:
    """Train a potential.

    Any key of the configuration can be set after it, for example  training.steps=500 model.size=small
    """
    overrides = parse_overrides(context.args)
    if output is not None:
        overrides["output"] = output
    if seed is not None:
        overrides["seed"] = seed
    run = _load(config, overrides)
    keep_trace_in(Path(run.output))

    from dpa1.analysis.plots import learning_curve
    from dpa1.training.distributed import place_of_process
    from dpa1.workflow import train as train_potential

    folder = train_potential(run, resume=resume).folder
    if place_of_process()[0] == 0:
        draw(lambda: learning_curve(folder / "metrics.csv"), folder / "learning_curve.png")


def _load(path: Path, overrides: dict[str, Any]) -> Any:
    from dpa1.config.run import config_from, read_values
    from dpa1.interop.deepmd_input import is_deepmd_input, translate

    values = read_values(path)
    if is_deepmd_input(values):
        values, notes = translate(values, path)
        for note in notes:
            typer.echo(f"{path.name}: {note}")
    return config_from(values, path, overrides)


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """``training.steps=500`` → {"training.steps": 500}; values are read as YAML."""
    from dpa1.config.run import parse_yaml

    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"'{argument}': what follows the configuration must look like training.steps=500")
        found[key] = parse_yaml(text)
    return found
