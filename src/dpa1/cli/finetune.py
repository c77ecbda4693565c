"""``dpa1 finetune``: a trained model and a few frames in, a model for those frames out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpa1.cli.data import Label, TypeMap, parse_labels, parse_type_map
from dpa1.cli.terminal import draw, keep_trace_in
from dpa1.config.finetune import OUTPUT, Method
from dpa1.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("finetune")(finetune_command)


def finetune_command(
    base: Annotated[
        str, typer.Argument(help="Model to start from: .dpa1, DeePMD-kit's files, or a shipped model's name.")
    ],
    data: Annotated[list[str], typer.Argument(help="Labelled data: files, folders or patterns that dpa1 reads.")],
    output: Annotated[
        Path | None, typer.Option(help="New run folder; finetuned when neither given nor in --config.")
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation data, several times if need be, or the fraction to hold out, 0 for none. A tenth when not given."
        ),
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test data; may be given several times.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="What learns; chosen by the number of frames when not given.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="Level of theory of the base to start from.")] = None,
    new_level: Annotated[str | None, typer.Option(help="What the new data's level of theory is called.")] = None,
    replay: Annotated[
        float | None,
        typer.Option("--replay", min=0.0, max=0.99, help="Share of frames drawn from the base's replay set."),
    ] = None,
    no_replay: Annotated[
        bool, typer.Option("--no-replay", help="Train on the new data alone, as without --config.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seeds the split and the order of the frames; 1 when not given.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML, TOML or JSON file with further settings (training, loss, data…).")
    ] = None,
    label: Label = None,
    type_map: TypeMap = None,
) -> None:
    """Fine-tune a trained model; architecture, cutoff, elements and normalisation are the base's."""
    if replay and no_replay:
        raise UserError("--replay and --no-replay are both given; keep one")
    from dpa1.config.run import read_values

    values = (read_values(config) if config is not None else None) or {}
    if not isinstance(values, dict):
        raise UserError(f"{config}: holds no sections of settings, such as training: or loss:")
    keep_trace_in(output or Path(str(values.get("output") or OUTPUT)))
    section = dict(values.get("data") or {})
    if label:
        section["labels"] = parse_labels(label)
    if type_map:
        section["type_map"] = parse_type_map(type_map)
    from dpa1.analysis.plots import learning_curve
    from dpa1.workflow import finetune

    folder = finetune(
        base, data, output=output, valid=_fraction(valid), test=test or None, method=method, level=level, new_level=new_level,
        replay=0.0 if no_replay else replay, steps=steps, learning_rate=learning_rate, seed=seed,
        config={**values, "data": section},
    ).folder  # fmt: skip
    draw(lambda: learning_curve(folder / "metrics.csv"), folder / "learning_curve.png")


def _fraction(given: list[str] | None) -> list[str] | float | None:
    """Paths, or the number that stands in their place."""
    if given and len(given) == 1 and not Path(given[0]).exists():
        try:
            return float(given[0])
        except ValueError:
            return given
    return given or None
