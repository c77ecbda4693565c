"""The page of benchmarks/ablation.py: tables of errors, parameters and processor time, and what they say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ablation import CASES, MODEL, VARIANTS, Case
from common import machine, save, table

Rows = list[dict[str, Any]]
FORCE = "force_rmse_meV_A"
GATES = {None: "–", True: "on", False: "off"}


def write_page(rows: Rows, args: argparse.Namespace) -> Path:
    """``ablation.md`` and ``raw/ablation.json``; returns the path of the page."""
    options = ["--seeds", *map(str, sorted({row["seed"] for row in rows})), *(["--quick"] if args.quick else [])]
    command = " ".join(["python benchmarks/ablation.py run", *options])
    output: Path = args.output
    save({"command": command, "machine": machine(), "model": MODEL, "results": rows}, output / "raw/ablation.json")
    seeds = sorted({row["seed"] for row in rows})
    parts = [INTRODUCTION.format(cutoff=MODEL["cutoff"], size=MODEL["size"])]
    for case in CASES:
        own = [row for row in rows if row["case"] == case.name]
        if own:
            parts += [f"## {case.name}\n", _text(case, own), _table(own)]
    parts += ["## What is found\n", findings(rows) + "\n"]
    missing = sum(len(seeds) for _ in CASES for _ in VARIANTS) - len(rows)
    if missing:
        parts.append(f"{missing} of the runs are missing here: they had not finished when this page was written.\n")
    loads = [row["load"] for row in rows]
    dates = [row["date"] for row in rows]
    parts.append(
        f"Command: `{command}`, {sum(row['cpu_s'] for row in rows) / 60:.0f} processor minutes. {min(dates)} to {max(dates)}, "
        f"load {min(loads):.0f}–{max(loads):.0f}. {machine()}.\nRaw: [raw/ablation.json](raw/ablation.json).\n"
    )
    (output / "ablation.md").write_text("\n".join(parts), encoding="utf-8")
    return output / "ablation.md"


INTRODUCTION = """# Ablation: attention layers and gate

As in the paper, attention layers are added one by one, each with and without the gate (the cosine of the angle between two
neighbours that multiplies their attention weight); everything else is equal: data, batches, number of steps, seeds, size
`{size}` otherwise, cutoff {cutoff:g} Å, the package's defaults for loss and optimizer. The model is the average of the weights at the last
step. These are short runs of small models, made to compare, not to be good; nothing was tuned.
"""


def _text(case: Case, rows: Rows) -> str:
    seeds = sorted({row["seed"] for row in rows})
    tests = " and ".join(f"*{test['test']}* ({test['frames']} frames)" for test in rows[0]["errors"])
    many = (
        f"seeds {', '.join(map(str, seeds))}; mean (smallest–largest)" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    )
    return (
        f"{case.what[0].upper()}{case.what[1:]}. {rows[0]['train_frames']} training frames, {rows[0]['steps']} steps of "
        f"{rows[0]['batch_atoms']} atoms, tests: {tests}; {many}.\n"
    )


def _chosen(rows: Rows, layers: int, gate: bool | None) -> Rows:
    return [row for row in rows if (row["layers"], row["gate"]) == (layers, gate)]


def _table(rows: Rows) -> str:
    names = [test["test"] for test in rows[0]["errors"]]
    header = ["layers", "gate"]
    for name in names:
        header += [f"E MAE, {name}", "E RMSE (meV/atom)", "F RMSE (meV/Å)"]
    lines = []
    for layers, gate in VARIANTS:
        own = _chosen(rows, layers, gate)
        if own:
            cells = [
                _cell([row["errors"][k][key] for row in own], digits)
                for k in range(len(names))
                for key, digits in (("energy_mae_meV_atom", 1), ("energy_rmse_meV_atom", 1), (FORCE, 0))
            ]
            lines.append([layers, GATES[gate], *cells, own[0]["parameters"], _cell([r["cpu_ms_step"] for r in own], 0)])
    return table([*header, "parameters", "CPU ms per step"], lines)


def _cell(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def findings(rows: Rows) -> str:
    """Two sentences, from the numbers."""
    layers, gates = [], []
    for case in CASES:
        for k, test in enumerate(case.tests):
            own = {
                variant: [row["errors"][k][FORCE] for row in _chosen(rows, *variant) if row["case"] == case.name]
                for variant in VARIANTS
            }
            own[VARIANTS[0]] = [
                row["errors"][k][FORCE] for row in rows if row["case"] == case.name and not row["layers"]
            ]
            name, none = f"{case.name} ({test.what})", own[VARIANTS[0]]
            changes = [(n, _change(own[n, True], none)) for n in (1, 2, 3) if own[n, True] and none]
            if changes:
                layers.append(f"{name} {', '.join(f'{n}: {c:+.0f} %' for n, c in changes)}")
            pairs = [(n, _change(own[n, True], own[n, False])) for n in (1, 2, 3) if own[n, True] and own[n, False]]
            if pairs:
                gates.append(f"{name} {', '.join(f'{n}: {p:+.0f} %' for n, p in pairs)}")
    seeds = len({row["seed"] for row in rows})
    caution = (
        "one seed each, so differences of some per cent may be chance"
        if seeds < 2
        else f"means over {seeds} seeds, whose spread is in the tables"
    )
    return (
        f"Gated layers change the force RMSE, against no layer, by (number of layers: change): {'; '.join(layers)} – {caution}. "
        f"The gate changes it, against as many layers without, by: {'; '.join(gates) or 'not measured'}."
    )


def _change(values: Sequence[float], reference: Sequence[float]) -> float:
    return 100 * (mean(values) / mean(reference) - 1)
