"""Train, evaluate and simulate germanium with the commands a user would type: ``make demo``.

Every run goes to a folder of its own, demo/run-1, demo/run-2…; nothing is overwritten.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write

import dpa1
from dpa1.analysis import plots

EXAMPLES = Path(__file__).resolve().parent
CONFIG, TEST = EXAMPLES / "germanium.yaml", EXAMPLES / "data" / "mlearn_Ge" / "test.xyz.gz"
TEMPERATURE, STEPS, TIMESTEP = 300, 500, 2.0  # K, –, fs


def main() -> None:
    begun = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # 64 atoms are too few to share between threads
    folder = shown(new_folder(EXAMPLES.parent / "demo"))
    model, structure = folder / "training" / "model.dpa1", folder / "crystal.xyz"

    title("1  Train on 228 germanium frames (bulk, strained, surfaces, vacancies, heat)")
    run("train", shown(CONFIG), "--output", folder / "training")

    title("2  Evaluate on the 25 frames of the published test split")
    run("evaluate", model, shown(TEST), "--output", folder / "evaluation")

    title(f"3  Molecular dynamics of a crystal at {TEMPERATURE} K, {STEPS * TIMESTEP / 1000:g} ps")
    write(structure, bulk_crystal())
    run(
        "md", model, structure, "--temperature", TEMPERATURE, "--steps", STEPS, "--timestep", TIMESTEP,
        "--output", folder / "md",
    )  # fmt: skip

    title("4  Draw")
    draw(folder, dpa1.load(model))

    title(f"Done in {time.monotonic() - begun:.0f} s. Everything lies in {folder}/")
    for place, what in (
        ("demo.png", "the picture: learning curve, parity, MD"),
        ("training/model.dpa1", "the trained potential"),
        ("training/", "configuration, log, metrics.csv, checkpoints"),
        ("evaluation/", "errors as JSON and CSV, parity plot"),
        ("md/", "trajectory.xyz, thermo.csv"),
    ):
        print(f"  {folder / place!s:<36}{what}")
    print(f"\nNext: dpa1 show {model}")


def run(verb: str, *arguments: Any) -> None:
    """One command of the package, shown as it would be typed; its own message explains a failure."""
    words = [verb, *map(str, arguments)]
    print(f"$ {shlex.join(['dpa1', *words])}", flush=True)
    code = subprocess.call([sys.executable, "-m", "dpa1", *words])
    if code:
        sys.exit(code)


def bulk_crystal() -> Any:
    """A perfect crystal: 64 atoms of diamond-structure germanium."""
    from ase.build import bulk

    return bulk("Ge", "diamond", a=5.76, cubic=True).repeat(2)


def draw(folder: Path, potential: Any) -> None:
    """demo.png: force errors while training, parity of the test frames, temperature and energy of the MD."""
    from matplotlib.figure import Figure

    pairs: dict[str, list[np.ndarray]] = {"energy": [], "force": []}

    def observe(frames: Any, prediction: Any, terms: Any) -> None:
        atoms = np.array([len(frame) for frame in frames])
        energy = np.array([frame.energy for frame in frames])
        pairs["energy"].append(np.stack([energy, prediction["energy"].numpy()]) / atoms)
        forces = np.concatenate([frame.forces for frame in frames])
        pairs["force"].append(np.stack([forces.ravel(), prediction["forces"].numpy().ravel()]))

    errors = dpa1.evaluate(potential, TEST, observe=observe)
    figure = Figure(figsize=(15, 3.7), layout="constrained")
    curve, *parity, md = figure.subplots(1, 4)

    log = plots.read_csv(folder / "training" / "metrics.csv")
    for part, label, style in (("train", "training batch", "-"), ("valid", "validation", "o-")):
        values = 1e3 * log[f"{part}_force_rmse"]
        known = np.isfinite(values)
        curve.plot(log["step"][known], values[known], style, linewidth=1, markersize=4, label=label)
    curve.set(yscale="log", xlabel="step", title="Training: force RMSE (meV/Å)")
    curve.yaxis.set_major_formatter("{x:.0f}")
    curve.yaxis.set_minor_formatter("{x:.0f}")
    curve.tick_params(axis="y", which="minor", labelsize=7)
    curve.legend()

    for axis, quantity, unit, label in zip(
        parity, ("energy", "force"), ("meV/atom", "meV/Å"), ("energy (eV/atom)", "force component (eV/Å)"), strict=True
    ):
        reference, predicted = np.concatenate(pairs[quantity], axis=1)
        low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
        axis.plot([low, high], [low, high], color="0.4", linewidth=0.8)
        axis.plot(reference, predicted, ".", markersize=3, alpha=0.6, rasterized=True)
        axis.set(xlabel=f"DFT {label}", ylabel="potential", aspect="equal")
        axis.set_title(f"Unseen frames: {1e3 * errors[f'{quantity}_rmse']:.3g} {unit} RMSE")

    thermo = plots.read_csv(folder / "md" / "thermo.csv")
    md.plot(thermo["time_fs"] / 1e3, thermo["temperature_K"], linewidth=1)
    md.set(xlabel="time (ps)", title="MD: temperature (K)")
    plots.save(figure, folder / "demo.png")


def new_folder(parent: Path) -> Path:
    """The first of run-1, run-2… that does not exist yet."""
    number = 1
    while (parent / f"run-{number}").exists():
        number += 1
    folder = parent / f"run-{number}"
    folder.mkdir(parents=True)
    return folder


def shown(path: Path) -> Path:
    """Relative to the current folder where that is possible."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def title(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}", flush=True)


if __name__ == "__main__":
    main()
