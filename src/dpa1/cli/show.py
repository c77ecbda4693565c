"""``dpa1 show``: the model card on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.terminal import to_json
from dpa1.units import rmse_in_words

if TYPE_CHECKING:
    from rich.table import Table

    from dpa1.model.potential import Potential


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("show")(show_command)


def show_command(
    model: Annotated[
        Path,
        typer.Argument(help="Model file (.dpa1, DeePMD-kit's .dp .yaml .pt .pth), or the name of a shipped model."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What a model is: elements, architecture, levels of theory, energy biases, origin and licence."""
    from dpa1.interop.load import load_potential
    from dpa1.interop.shipped import find_model

    path = find_model(model)
    card = model_card(load_potential(path), path)
    if json:
        typer.echo(to_json(card))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for key, value in card.items():
        if key == "errors" and isinstance(value, dict):
            value = {part: f"RMSE {rmse_in_words(numbers)}" for part, numbers in value.items()}
        if key not in ("energies", "config", "run", "card", "level_data") and value not in ({}, []):
            console.print(f"{key.replace('_', ' '):<16} {_text(value)}", markup=False, soft_wrap=True)
    if "card" in card:
        for line in card_lines(card["card"]):
            console.print(line, markup=False, soft_wrap=True)
        console.print(card_table(card["card"]))
    level, *others = card["levels"]
    of = f", level {level}" if others else ""
    table = Table(title=f"energy of an isolated atom, eV{of}", title_justify="left")
    table.add_column("element")
    for title in ("energy bias", "+ network"):
        table.add_column(title, justify="right")
    for symbol in card["elements"][:SHOWN]:
        table.add_row(symbol, *(f"{value:.6f}" for value in card["energies"][level][symbol].values()))
    console.print(table)
    more = len(card["elements"]) - SHOWN
    left = [f"{more} more elements"] if more > 0 else []
    left += [f"the {'levels' if len(others) > 1 else 'level'} {', '.join(others)}"] if others else []
    if left:
        console.print(f"… and {' and '.join(left)}: see --json")


def card_lines(card: dict[str, Any]) -> list[str]:
    """What a shipped model is, is good for and is not, whence and how it was trained."""
    lines = ["", card["description"]]
    for title, key in (("good for", "good_for"), ("not good for", "not_good_for")):
        lines += [f"{title}:", *(f"  - {point}" for point in card[key])]
    return [
        *lines,
        *(f"{key.replace('_', ' '):<16} {_text(card[key])}" for key in ("training", "dropped") if key in card),
    ]


def card_table(card: dict[str, Any]) -> Table:
    """Its sources, with the errors on the frames of each that were held back."""
    from rich.table import Table

    title = "sources; mean absolute errors on frames held back: E meV/atom, F meV/Å, W meV/atom"
    table = Table(title=title, title_justify="left", box=None)
    for column in ("source", "level", "licence", "frames", "held", "E", "F", "W"):
        table.add_column(column, justify="left" if column in ("source", "level", "licence") else "right")
    for row in card["sources"]:
        errors = (
            1e3 * row[f"{quantity}_mae"] if f"{quantity}_mae" in row else None
            for quantity in ("energy", "force", "virial")
        )
        cells = ("–" if error is None else f"{error:.4g}" for error in errors)
        table.add_row(row["name"], row["level"], row["licence"], str(row["frames"]), str(row["held_back"]), *cells)
    return table


SHOWN = 20  # elements whose energies fit on one screen


def model_card(potential: Potential, path: Path) -> dict[str, Any]:
    """Everything ``dpa1 show`` prints, in eV and Å."""
    from dpa1.model.file import version_of
    from dpa1.model.isolated import empty_environment_energy
    from dpa1.model.memory import fitting_atoms

    config = potential.config
    layers = config.attention_layers
    info = dict(potential.info)
    card: dict[str, Any] = {
        "file": str(path),
        "format": f"dpa1, version {version_of(potential)}"
        if "imported_from" not in info or path.suffix == ".dpa1"
        else "DeePMD-kit",
        "elements": list(potential.elements),
        "convention": config.convention
        + (f", sel {config.sel}" if config.convention == "deepmd" else f", mean neighbors {config.mean_neighbors:.4g}"),
        "cutoff": f"{config.cutoff:g} Å, switch from {config.switch_start:g} Å",
        "architecture": f"embedding {'-'.join(map(str, config.embedding))}, axis {config.axis}, type embedding "
        f"{config.type_embedding} ({config.type_input}), {layers} attention layer{'' if layers == 1 else 's'} of width "
        f"{config.attention_width}, fitting {'-'.join(map(str, config.fitting))}",
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "precision": config.precision,
        "levels": list(potential.levels),
        "licence": info.pop("licence", info.pop("license", "not stated")),
    }
    neighbors = float(config.mean_neighbors or config.sel or 0)
    card["fits"] = fitting_atoms(config, potential.dtype, neighbors)
    card["replay_set"] = replay_set(potential)
    if info.get("trained_elements") == card["elements"]:
        del info["trained_elements"]
    card.update(info)
    constants = [empty_environment_energy(potential, level) for level in range(len(potential.levels))]
    bias = potential.energy_bias.cpu().numpy()
    card["energies"] = {
        level: {
            symbol: {"energy_bias": float(bias[i, k]), "network": float(constants[i][k])}
            for k, symbol in enumerate(potential.elements)
        }
        for i, level in enumerate(potential.levels)
    }
    card["config"] = config.model_dump(mode="json")
    return card


def replay_set(potential: Potential) -> dict[str, Any] | str:
    """How many labelled frames travel inside the file, for fine-tuning to measure forgetting, in total and per level."""
    frames = potential.replay
    if not frames:
        return "none"
    counts = {level: sum(f.level == level for f in frames) for level in potential.levels}
    return {"frames": len(frames), "atoms": sum(map(len, frames)), "levels": counts}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items() if entry not in (None, {}, []))
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
