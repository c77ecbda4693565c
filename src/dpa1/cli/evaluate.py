"""``dpa1 evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.data import Label, TypeMap, parse_labels, parse_type_map
from dpa1.cli.tabulate import Tabulate, report_tables
from dpa1.cli.terminal import Progress, check_new, draw, new_folder, to_json
from dpa1.units import SHOWN

if TYPE_CHECKING:
    from rich.table import Table

    from dpa1.analysis.record import Recorder
    from dpa1.analysis.worst import Worst
    from dpa1.frames import Frame
    from dpa1.model.potential import Potential


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    model: Annotated[Path, typer.Argument(help="Model file: .dpa1, or DeePMD-kit's .dp .yaml .pt .pth.")],
    data: Annotated[list[str], typer.Argument(help="Labelled data: files, folders or patterns that dpa1 reads.")],
    output: Annotated[
        Path | None, typer.Option(help="New folder for metrics.json, frames.csv, parity.png and report.html.")
    ] = None,
    label: Label = None,
    type_map: TypeMap = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON (eV, Å) instead of a table.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; the model's own by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    level: Annotated[str | None, typer.Option(help="Level of theory, for a model that holds several.")] = None,
    tabulate: Tabulate = False,
    batch_atoms: Annotated[int, typer.Option(min=1, help="Atoms evaluated together; changes speed only.")] = 1000,
) -> None:
    """Errors of energy, forces, virial and stress: in total, per element, per source, and the worst frames."""
    if output is not None:
        check_new(output)
    from dpa1.data.read import iter_frames
    from dpa1.data.report import LabelReport
    from dpa1.interop.load import load_potential

    potential = load_potential(model)
    if tabulate:
        potential = potential.tabulated()
    report = LabelReport()
    frames = iter_frames(data, parse_labels(label), type_map=parse_type_map(type_map), report=report)
    options = {"dtype": dtype, "device": device, "level": level, "batch_atoms": batch_atoms}
    if output is None:
        result, written = _evaluate(potential, str(model), frames, options, None), []
    else:
        with new_folder(output) as part:
            result = _evaluate(potential, str(model), frames, options, part)
            written = sorted(path.name for path in part.iterdir())
    report_tables(potential)
    if json:
        typer.echo(to_json(result))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(str(report), markup=False)
    for table in tables(result):
        console.print(table)
    for name in written:
        typer.echo(f"wrote {output}/{name}")


def _evaluate(
    potential: Potential, name: str, frames: Iterator[Frame], options: dict[str, Any], folder: Path | None
) -> dict[str, Any]:
    from dpa1.analysis.evaluate import evaluate

    progress = Progress(None, "frames")
    done = 0

    def observe(batch: Any, prediction: Any, terms: Any) -> None:
        nonlocal done
        done += len(batch)
        progress.update(done)
        for observer in observers:
            observer.observe(batch, prediction, terms)

    observers: list[Recorder | Worst] = []
    if folder is None:
        result = evaluate(potential, frames, observe=observe, **options)
    else:
        from dpa1.analysis.plots import parity
        from dpa1.analysis.record import Recorder
        from dpa1.analysis.report import Evaluated, write_report
        from dpa1.analysis.worst import Worst

        with (folder / "frames.csv").open("w", encoding="utf-8", newline="") as file:
            recorder, worst = Recorder(potential, file, options["level"]), Worst()
            observers += [recorder, worst]
            result = evaluate(potential, frames, observe=observe, **options)
        (folder / "metrics.json").write_text(to_json(result) + "\n", encoding="utf-8")
        points = {quantity: sample.arrays() for quantity, sample in recorder.points.items()}
        draw(lambda: parity(points, result), folder / "parity.png")
        write_report(
            folder / "report.html",
            title=f"Evaluation of {name}",
            evaluated=[Evaluated("evaluation", result, points, worst.frames())],
            facts=[("model", name), *((key, str(value)) for key, value in options.items() if value is not None)],
        )
    progress.close()
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The errors as tables, in meV/atom, meV/Å and GPa."""
    from rich.table import Table

    total = Table(title=f"{result['n_frames']} frames, {result['n_atoms']} atoms", title_justify="left")
    for column in ("", "RMSE", "MAE", "unit"):
        total.add_column(column, justify="left" if column in ("", "unit") else "right")
    for quantity, (_, unit) in SHOWN.items():
        if result[f"{quantity}_rmse"] == result[f"{quantity}_rmse"]:
            total.add_row(quantity, _shown(result, quantity, "rmse"), _shown(result, quantity, "mae"), unit)
    out = [total]
    if len(result["per_element"]) > 1:
        elements = Table(title="forces per element", title_justify="left")
        for column in ("element", "atoms", "RMSE meV/Å", "MAE meV/Å"):
            elements.add_column(column, justify="left" if column == "element" else "right")
        for symbol, row in result["per_element"].items():
            elements.add_row(symbol, str(row["n_atoms"]), _shown(row, "force", "rmse"), _shown(row, "force", "mae"))
        out.append(elements)
    for kind, title in (("source", "source"), ("level", "level of theory")):
        if len(result[f"per_{kind}"]) > 1:
            parts = Table(title=f"RMSE per {title}", title_justify="left")
            parts.add_column(kind, overflow="fold")
            for quantity, (_, unit) in SHOWN.items():
                parts.add_column(f"{quantity} {unit}", justify="right")
            for name, row in result[f"per_{kind}"].items():
                parts.add_row(name, *(_shown(row, quantity, "rmse") for quantity in SHOWN))
            out.append(parts)
    if result["worst"]:
        worst = Table(title="worst frames", title_justify="left")
        worst.add_column("quantity")
        worst.add_column("RMSE", justify="right")
        worst.add_column("frame", overflow="fold")
        for quantity, entries in result["worst"].items():
            factor, unit = SHOWN[quantity]
            for entry in entries[:3]:
                worst.add_row(quantity, f"{factor * entry['error']:.4g} {unit}", entry["frame"])
        out.append(worst)
    return out


def _shown(row: dict[str, float], quantity: str, kind: str) -> str:
    value = SHOWN[quantity][0] * row[f"{quantity}_{kind}"]
    return "–" if value != value else f"{value:.4g}"
