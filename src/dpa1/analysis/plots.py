"""Pictures of an evaluation, a training run and an MD run. Figures are objects of their own: no global plotting state."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa1.errors import UserError, needs
from dpa1.units import SHOWN, TRAINED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 100  # points that are drawn large enough to be seen one by one
PARITY = {
    "energy": "energy minus energy biases (eV/atom)",
    "force": "force component (eV/Å)",
    "virial": "virial component (eV/atom)",
}


def parity(points: Mapping[str, tuple[np.ndarray, np.ndarray]], result: Mapping[str, float]) -> Figure:
    """Predicted against reference values, one panel per quantity.

    points: quantity (energy, force, virial) → (reference, predicted), each (n,); result: the errors of ``evaluate``.
    """
    shown = {key: pair for key, pair in points.items() if len(pair[0])}
    figure, axes = new_figure(1, len(shown))
    for axis, (quantity, (reference, predicted)) in zip(axes, shown.items(), strict=True):
        label, (factor, unit) = PARITY[quantity], SHOWN[quantity]
        few = len(reference) <= FEW
        axis.plot(
            reference,
            predicted,
            ".",
            markersize=7 if few else 2,
            alpha=0.8 if few else 0.5,
            color="C0",
            rasterized=True,
        )
        low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
        if high - low < 1e-6 * max(abs(low), abs(high), 1.0):  # one value: the axes would show rounding errors
            low, high = low - 1e-3, high + 1e-3
        axis.plot([low, high], [low, high], color="0.4", linewidth=0.8)
        axis.locator_params(nbins=5)
        axis.ticklabel_format(useOffset=False)
        axis.set_xlabel(f"reference {label}")
        axis.set_ylabel("predicted")
        rmse, mae = factor * result[f"{quantity}_rmse"], factor * result[f"{quantity}_mae"]
        axis.set_title(f"RMSE {rmse:.3g}, MAE {mae:.3g} {unit}", fontsize=10)
        axis.set_aspect("equal", adjustable="datalim")
    return figure


def thermo(log: str | Path) -> Figure:
    """Temperature, energies, drift and pressure of an MD run against time, from its ``thermo.csv``."""
    table = read_csv(log)
    time = table["time_fs"] / 1000.0
    rows: list[tuple[str, Sequence[tuple[str, np.ndarray]]]] = [
        ("temperature (K)", [("", table["temperature_K"])]),
        ("Δ energy (eV)", [
            (name, table[f"{name}_eV"] - table[f"{name}_eV"][0]) for name in ("potential", "kinetic", "total")
        ]),
    ]  # fmt: skip
    for label, column in (
        ("drift (meV/atom)", "drift_meV_per_atom"),
        ("pressure (GPa)", "pressure_GPa"),
        ("volume (Å³)", "volume_A3"),
    ):
        values = table[column]
        if np.isfinite(values).any() and (column != "volume_A3" or np.ptp(values) > 0):
            rows.append((label, [("", values)]))
    figure, axes = new_figure(len(rows), 1, width=7.0, height=1.9)
    for axis, (label, curves) in zip(axes, rows, strict=True):
        for name, values in curves:
            axis.plot(time, values, linewidth=0.8, label=name)
        if len(curves) > 1:
            axis.legend(fontsize=8, loc="best")
        axis.set_ylabel(label, fontsize=9)
    axes[-1].set_xlabel("time (ps)")
    return figure


def learning_curve(log: str | Path) -> Figure:
    """Training and validation errors against the step, from a run's ``metrics.csv``.

    Every column that ends in ``energy_rmse``, ``force_rmse`` or ``virial_rmse`` (in eV) becomes a curve.
    """
    table = read_csv(log)
    panels = {}
    for quantity, (factor, unit) in TRAINED.items():
        curves = {
            name.removesuffix(f"{quantity}_rmse").strip("_/ ") or "error": factor * values
            for name, values in table.items()
            if name.endswith(f"{quantity}_rmse") and (np.isfinite(values) & (values > 0)).any()
        }
        if curves:
            panels[f"{quantity} RMSE ({unit})"] = curves
    if not panels:
        raise UserError(f"{log}: has no column of errors (…_energy_rmse, …_force_rmse) to draw")
    figure, axes = new_figure(1, len(panels))
    from matplotlib.ticker import LogFormatter

    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            known = np.isfinite(values) & (values > 0)
            marker = "." if known.sum() <= FEW else ""
            axis.plot(table["step"][known], values[known], label=name, linewidth=1.0, marker=marker)
        axis.set_yscale("log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axis.set_xlabel("step")
        axis.set_title(label, fontsize=10)
        axis.legend(fontsize=8)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=150)


def read_csv(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of numbers by name; an empty field is NaN."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        raise UserError(f"{path}: has no rows to draw")
    columns = zip(*rows[1:], strict=True)
    return {name: np.array([_number(v) for v in column]) for name, column in zip(rows[0], columns, strict=True)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def new_figure(
    rows: int, columns: int, width: float = 4.2, height: float = 4.0, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """An own figure of rows × columns axes; ``width`` and ``height`` of each in inches.

    share: axes above each other have the same horizontal axis.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise needs("matplotlib", "plots", "drawing") from None
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col" if rows > 1 and share else False)
    return figure, list(grid.ravel())
