"""What the demo measures, says and draws of it: three models on the same unseen frames, in one picture and on one page."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Printed

from dpa1.analysis import plots
from dpa1.analysis import report as page
from dpa1.analysis.element_plots import PERIODS, element_figure, element_scenes
from dpa1.analysis.elements import element_map
from dpa1.analysis.page import Section, Table, image
from dpa1.data.dataset import open_dataset
from dpa1.units import TRAINED

MODELS = ("base, as it is", "fine-tuned", "from scratch")
COLOURS = dict(zip(MODELS, ("0.6", "C0", "C1"), strict=True))
ARMS = {"finetuned": "fine-tuned", "scratch": "from scratch"}
Found = Mapping[str, page.Evaluated]


def compare(potentials: Mapping[str, Any], frames: Sequence[Any], level: str) -> Found:
    """Evaluate each on the same frames, and print the table."""
    table = Printed(box=None)
    table.add_column("model")
    for quantity, (_, unit) in TRAINED.items():
        table.add_column(f"{quantity} RMSE, {unit}", justify="right")
    found = {}
    for name, potential in potentials.items():
        own = level if len(potential.levels) > 1 else None
        found[name] = page.survey(potential, frames, "test" if name == "fine-tuned" else f"test ({name})", level=own)
        errors = found[name].result
        table.add_row(name, *(f"{factor * errors[f'{q}_rmse']:.4g}" for q, (factor, _) in TRAINED.items()))
    Console(highlight=False).print(table)
    return found


def conclusion(found: Found, frames: int, steps: int) -> str:
    """What the numbers say, whatever they are."""
    zero, tuned, scratch = (1e3 * found[name].result["force_rmse"] for name in MODELS)
    ratio = scratch / tuned
    how = f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"
    return (
        f"{frames} frames and {steps} steps for both arms: force RMSE {tuned:.3g} meV/Å fine-tuned, {scratch:.3g} from scratch "
        f"({how} with pretraining; one seed); {zero:.3g} before any training on these frames."
    )


def draw(folder: Path, found: Found, base: Any) -> None:
    """demo.png: validation errors of both arms, parity of the forces, the elements, the temperature of the MD."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4), layout="constrained")
    curves, forces, elements, md = figure.subplots(1, 4)
    _curves(curves, folder, "force")
    curves.yaxis.set_major_formatter("{x:.0f}")
    curves.yaxis.set_minor_formatter("{x:.0f}")
    curves.set_title("While training: force RMSE (meV/Å)")
    for name in ("base, as it is", "from scratch", "fine-tuned"):  # the one that matters on top
        reference, predicted = found[name].points["force"]
        rmse = 1e3 * found[name].result["force_rmse"]
        label = f"{name}: {rmse:.3g} meV/Å"
        forces.plot(
            reference, predicted, ".", markersize=2, alpha=0.5, color=COLOURS[name], label=label, rasterized=True
        )
    low, high = np.min(reference), np.max(reference)
    forces.plot([low, high], [low, high], color="0.2", linewidth=0.8)
    forces.set(xlabel="DFT force component (eV/Å)", ylabel="potential", title="Unseen frames")
    forces.legend(fontsize=7, markerscale=4)

    shown = element_map(base)
    places = np.pad(
        shown.components[:, :2], ((0, 0), (0, max(0, 2 - shown.components.shape[1])))
    )  # two elements: a line
    for period in sorted(set(shown.periods)):
        members = [k for k, row in enumerate(shown.periods) if row == period]
        elements.plot(*places[members].T, color=PERIODS[period - 1], linewidth=0.6, alpha=0.5)
        for k in members:
            elements.text(*places[k], shown.symbols[k], fontsize=6, color=PERIODS[period - 1], clip_on=True)
    elements.set(xticks=[], yticks=[], title="Elements of the base, coloured by period")

    thermo = plots.read_csv(folder / "md" / "thermo.csv")
    md.plot(thermo["time_fs"] / 1e3, thermo["temperature_K"], linewidth=1)
    md.set(xlabel="time (ps)", title="MD, fine-tuned model: temperature (K)")
    plots.save(figure, folder / "demo.png")


def write_report(
    folder: Path, found: Found, base: Any, *, train: Path, test: Path, steps: int, seconds: float, texts: Sequence[str],
    config: str,
) -> None:  # fmt: skip
    """``report.html``: everything on one page that opens offline."""
    curves, axes = plots.new_figure(1, 3)
    for axis, (quantity, (_, unit)) in zip(axes, TRAINED.items(), strict=True):
        _curves(axis, folder, quantity)
        axis.set_title(f"{quantity} RMSE ({unit})", fontsize=10)
    parity = [image(plots.parity(found[name].points, found[name].result)) for name in MODELS[1:]]
    shown = element_map(base)
    sections = [
        Section(
            "Pretrained or from scratch",
            [*texts, "Same architecture, frames, loss, steps, batches and seed; each arm with its own learning rate."],
            tables=[page.error_table({name: found[name].result for name in MODELS}, "Test frames")],
        ),
        Section("Learning curves of both arms (validation frames; thin: training batches)", images=[image(curves)]),
        Section("Parity: fine-tuned, then from scratch", images=parity),
        Section(
            "The elements as the pretrained model sees them",
            ["Principal components of its type embedding; lines follow the periods. Drag to turn."],
            images=[image(element_figure(shown))],
            tables=[_tests(folder / "elements" / "elements.json")],
            scenes=element_scenes(shown),
            large=True,
        ),
        Section(
            "Molecular dynamics with the fine-tuned model", images=[image(plots.thermo(folder / "md" / "thermo.csv"))]
        ),
    ]
    page.write_report(
        folder / "report.html",
        title="Fine-tuning a pretrained potential",
        evaluated=[found["fine-tuned"]],
        sections=sections,
        data={"training": open_dataset([train]), "test": open_dataset([test])},
        facts=[("steps of each arm", f"{steps:,}"), ("time so far", f"{seconds:.0f} s"), *_times(folder)],
        config=config,
    )


def _curves(axis: Any, folder: Path, quantity: str) -> None:
    for arm, name in ARMS.items():
        log = plots.read_csv(folder / arm / "metrics.csv")
        for part, style, label in (("train", {"linewidth": 0.6, "alpha": 0.5}, None), ("valid", {"marker": "o"}, name)):
            values = 1e3 * log[f"{part}_{quantity}_rmse"]
            known = np.isfinite(values)
            axis.plot(log["step"][known], values[known], color=COLOURS[name], markersize=4, label=label, **style)
    axis.set(yscale="log", xlabel="step")
    axis.legend(fontsize=8)


def _tests(path: Path) -> Table:
    """What ``dpa1 elements`` measured."""
    rows = [
        (row["quantity"], row["method"], f"{row['value']:.3f}", f"{row['chance']:.3f}", f"{row['p']:.2g}")
        for row in json.loads(path.read_text(encoding="utf-8"))["tests"]
        if "value" in row
    ]
    return Table(("what", "how", "value", "chance", "p"), rows, "Numbers against chance", text=(0, 1))


def _times(folder: Path) -> list[tuple[str, str]]:
    """Seconds each arm spent in its training loop."""
    found = []
    for arm, name in ARMS.items():
        with (folder / arm / "metrics.csv").open(encoding="utf-8", newline="") as file:
            found.append((f"training loop, {name}", f"{float(list(csv.DictReader(file))[-1]['seconds']):.0f} s"))
    return found
