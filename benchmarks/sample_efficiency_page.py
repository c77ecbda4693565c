"""The page of benchmarks/sample_efficiency.py: learning curves, tables, frames saved at equal force error."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import machine, save, table
from sample_efficiency import ARMS, MACHINE, RAW, STEPS, TASKS, TUNED_AT, ZERO, Run

FIRST = 8  # frames of training from scratch, from which on its factor is listed
Curve = dict[int, list[float]]  # frames → one number per seed
QUANTITIES = (("force_rmse_meV_A", "force RMSE (meV/Å)"), ("energy_rmse_meV_atom", "energy RMSE (meV/atom)"))


def curves(rows: Sequence[dict[str, Any]], quantity: str) -> dict[tuple[str, str], Curve]:
    """(task, arm) → curve."""
    found: dict[tuple[str, str], Curve] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (row["frames"], row["seed"])):
        found[row["task"], row["arm"]][row["frames"]].append(row[quantity])
    return found


def frames_needed(scratch: Curve, error: float) -> tuple[float, str]:
    """Frames with which the curve reaches ``error``, by interpolation of logarithms; '>' or '<' where it ends before."""
    sizes = sorted(n for n in scratch if n != ZERO)
    errors = [median(scratch[n]) for n in sizes]
    # The best error up to each size: a curve that goes up again has still reached what it reached.
    best = np.minimum.accumulate(errors)
    if error >= best[0]:
        return float(sizes[0]), "<"
    if error < best[-1]:
        return float(sizes[-1]), ">"
    place = int(np.argmax(best <= error))
    x0, x1, y0, y1 = np.log([sizes[place - 1], sizes[place], best[place - 1], best[place]])
    return float(np.exp(x0 + (x1 - x0) * (np.log(error) - y0) / (y1 - y0))), ""


def factors(scratch: Curve, finetune: Curve) -> dict[int, tuple[float, str]]:
    """For each size of the fine-tuned curve, the factor in frames that training from scratch needs."""
    found = {}
    for frames in sorted(n for n in finetune if n != ZERO):
        needed, bound = frames_needed(scratch, median(finetune[frames]))
        found[frames] = (needed / frames, bound)
    return found


def write_page(args: argparse.Namespace) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(args.work.glob("*/result.json"))]
    wanted = {
        Run(task, arm, frames, seed).name
        for task in TASKS for arm in ARMS for frames in (ZERO, *STEPS) for seed in args.seeds if task.takes(arm, frames)
    }  # fmt: skip
    usual = {(task.name, frames): Run(task, ARMS[0], frames, 1).steps for task in TASKS for frames in (ZERO, *STEPS)}
    longer = [row for row in rows if row["steps"] != usual[row["task"], row["frames"]]]
    trials = [
        row for row in rows
        if _name(row) not in wanted and row not in longer and row["frames"] in TUNED_AT and row["seed"] == 1
    ]  # fmt: skip
    rows = [row for row in rows if _name(row) in wanted]
    note, published = args.work / "note.md", args.output / RAW
    remarks = note.read_text(encoding="utf-8") if note.exists() else json.loads(published.read_text())["remarks"]
    where = (args.work / MACHINE).read_text(encoding="utf-8") if (args.work / MACHINE).exists() else machine()
    settings = {task.name: dict(zip(TUNED_AT, map(asdict, task.settings), strict=True)) for task in TASKS}
    found = {"machine": where, "base": args.base, "settings": settings, "settings_up_to": TUNED_AT, "steps": STEPS}
    save({**found, "remarks": remarks, "results": rows, "trials": trials, "longer": longer}, published)
    force = curves(rows, QUANTITIES[0][0])
    plot(rows, args.output / "sample-efficiency.png")
    parts = [INTRODUCTION.format(base=args.base, seeds=len(args.seeds)), "![Learning curves](sample-efficiency.png)\n"]
    parts += ["## Frames saved at equal force error\n", SAVED]
    best = tuned([*rows, *longer], longer)
    parts += [SAVED_LONGER, summary(best), SAVED_BY_SCRATCH, summary_by_scratch(best)] if longer else []
    parts += [SAVED_SHORT, summary(force)]
    for task in TASKS:
        parts += [f"## {task.name}\n", f"{task.what[0].upper()}{task.what[1:]}.\n", task_table(rows, task.name)]
    parts += ["## Learning rates and methods tried\n", trial_table([*rows, *trials])]
    parts += ["## More steps\n", length_table([*rows, *longer], longer)] if longer else []
    parts.append(remarks)
    parts.append(
        "Command: `python benchmarks/sample_efficiency.py run --workers 2 && python benchmarks/sample_efficiency.py page`. "
        f"{where}.\nRaw: [raw/sample-efficiency.json](raw/sample-efficiency.json).\n"
    )
    (args.output / "sample-efficiency.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


SAVED = """Frames that training from scratch needs for the force RMSE that fine-tuning reaches with n frames, over n
(interpolated between sizes). `>`: more than all frames of the curve; `<`: fewer than its smallest set.
"""
SAVED_LONGER = """With the number of steps chosen for each arm and size by itself, the better of that below and three times as many
(up to 64 frames; medians over the seeds of which both were run, below under "More steps"):
"""
SAVED_BY_SCRATCH = """The same curves read the other way: N frames of training from scratch, over the frames with which fine-tuning reaches its force RMSE.
`>`: two frames, the smallest set, are already better.
"""
SAVED_SHORT = """With the same number of steps in both arms, 10–60 s of one core (medians over seeds). Where more steps help training from scratch
more, as in water, these factors are too good:
"""
INTRODUCTION = """# Sample efficiency: from scratch and from the pretrained model

Force and energy errors on the test split of five tasks that are in none of the pretraining data, after training from scratch
and after fine-tuning `{base}`. Both arms have the same architecture, frames, batches, loss, number of optimizer steps and
schedule; for each task and arm the learning rate, and for fine-tuning the method, is the best, or (but where said below) within 5 % of the best, of
those tried with 2 frames, with 4, with 8 (for 8 and 16), with 32 (for 32 and 64) and with 128 (for more); below is what
was tried. Up to {seeds} seeds, which draw both the frames and the initial weights; medians, with the range in brackets where there
is more than one. The runs of the curves are short (10–60 s of one core), so they flatten where the number of steps limits them, not the
number of frames; three times as many steps were tried as well, at the same learning rates ("More steps"). Energies carry a per-element bias fitted to the training frames in both
arms. *Zero-shot* is the pretrained model with its energy bias refitted to 8 frames, nothing else changed.
"""


def summary(force: dict[tuple[str, str], Curve]) -> str:
    """Factor per task and size."""
    sizes = sorted({n for (_, arm), curve in force.items() for n in curve if n != ZERO and arm == ARMS[1]})
    body = []
    for task in TASKS:
        found = factors(force[task.name, "scratch"], force[task.name, "finetune"])
        cells = [f"{found[n][1]} {found[n][0]:.1f}".strip() if n in found else "–" for n in sizes]
        body.append([task.name, *cells])
    return table(["task", *(f"n = {n}" for n in sizes)], body)


def summary_by_scratch(force: dict[tuple[str, str], Curve]) -> str:
    """The factor per task and size of training from scratch."""
    sizes = sorted({n for (_, arm), curve in force.items() for n in curve if arm == ARMS[0] and n >= FIRST})
    turned = {"<": ">", ">": "<", "": ""}
    body = []
    for task in TASKS:
        scratch, finetune = force[task.name, "scratch"], force[task.name, "finetune"]
        cells = []
        for n in sizes:
            if n not in scratch:
                cells.append("–")
                continue
            best = min(median(errors) for size, errors in scratch.items() if size <= n)
            needed, bound = frames_needed(finetune, best)
            cells.append(f"{turned[bound]} {n / needed:.1f}".strip())
        body.append([task.name, *cells])
    return table(["task", *(f"N = {n}" for n in sizes)], body)


def tuned(rows: Sequence[dict[str, Any]], longer: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Curve]:
    """Force errors with the better number of steps for each arm and size, of the seeds of which both numbers were run.

    A learning rate tried with more steps counts where it was run with all of these seeds.
    """
    wanted = {(row["task"], row["arm"], row["frames"]) for row in longer}
    tried: dict[tuple[str, str, int], dict[tuple[int, bool, float, str], dict[int, float]]]
    tried = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if (place := (row["task"], row["arm"], row["frames"])) in wanted:
            choice = row["steps"], usual_settings(row), row["learning_rate"], row.get("method", "")
            tried[place][choice][row["seed"]] = row[QUANTITIES[0][0]]
    found: dict[tuple[str, str], Curve] = defaultdict(dict)
    for (task, arm, frames), by_choice in tried.items():
        seeds = sorted(set.intersection(*(set(errors) for (_, usual, *_), errors in by_choice.items() if usual)))
        complete = [errors for errors in by_choice.values() if set(seeds) <= set(errors)]
        found[task, arm][frames] = min(([errors[seed] for seed in seeds] for errors in complete), key=median)
    return found


def usual_settings(row: dict[str, Any]) -> bool:
    """Whether learning rate and method are those chosen for the task and size."""
    return all(row[key] == value for key, value in _usual(row).settings.items())


def _usual(row: dict[str, Any]) -> Run:
    task = next(task for task in TASKS if task.name == row["task"])
    return Run(task, row["arm"], row["frames"], row["seed"])


def task_table(rows: Sequence[dict[str, Any]], task: str) -> str:
    """Errors of both arms at every size."""
    header = ["frames", "steps"]
    for _, title in QUANTITIES:
        header += [f"{title}, scratch", "fine-tuned"]
    found = [curves(rows, quantity) for quantity, _ in QUANTITIES]
    sizes = sorted(set(found[0][task, "scratch"]) | set(found[0][task, "finetune"]))
    steps = {row["frames"]: row["steps"] for row in rows if row["task"] == task}
    body = [
        ["zero-shot" if n == ZERO else n, steps[n], *(_cell(f[task, arm].get(n)) for f in found for arm in ARMS)]
        for n in sizes
    ]
    return table(header, body)


def trial_table(rows: Sequence[dict[str, Any]]) -> str:
    """Force errors of the runs with the sizes that were tried and the first seed."""
    found = {
        (row["task"], row["arm"], row.get("method", ""), row["frames"], row["learning_rate"]): row["force_rmse_meV_A"]
        for row in rows if row["frames"] in TUNED_AT and row["seed"] == 1
    }  # fmt: skip
    rates, names = sorted({key[-1] for key in found}), [task.name for task in TASKS]
    lines = sorted(
        {key[:4] for key in found}, key=lambda key: (names.index(key[0]), key[3], ARMS.index(key[1]), key[2])
    )
    body = [
        [line[0], line[3], f"{line[1]} ({line[2]})" if line[2] else line[1],
         *(f"{found[*line, rate]:.3g}" if (*line, rate) in found else "–" for rate in rates)]
        for line in lines
    ]  # fmt: skip
    return "Force RMSE (meV/Å), seed 1.\n\n" + table(["task", "frames", "arm", *(f"{r:g}" for r in rates)], body)


def length_table(rows: Sequence[dict[str, Any]], longer: Sequence[dict[str, Any]]) -> str:
    """Force errors of both arms where another number of steps was run as well, and other learning rates tried with it."""
    usual = [row for row in rows if usual_settings(row)]
    places = {(row["task"], row["frames"]) for row in longer}
    lengths = sorted(
        {(row["task"], row["frames"], row["steps"]) for row in rows if (row["task"], row["frames"]) in places}
    )
    found = {
        length: curves([row for row in usual if (row["task"], row["frames"], row["steps"]) == length], QUANTITIES[0][0])
        for length in lengths
    }
    body = [[*length, *(_cell(found[length][length[0], arm].get(length[1])) for arm in ARMS)] for length in lengths]
    text = "Force RMSE (meV/Å).\n\n" + table(["task", "frames", "steps", "scratch", "fine-tuned"], body)
    others = [row for row in longer if not usual_settings(row)]
    if not others:
        return text
    body = [
        [row["task"], row["frames"], row["seed"], row["steps"], f"{row['arm']} ({row['method']})" if "method" in row else row["arm"],
         f"{row['learning_rate']:g}", f"{row[QUANTITIES[0][0]]:.3g}"]
        for row in sorted(others, key=lambda r: (r["task"], r["frames"], r["arm"], r["seed"]))
    ]  # fmt: skip
    header = ["task", "frames", "seed", "steps", "arm", "learning rate", "force RMSE (meV/Å)"]
    return f"{text}\nWith other learning rates:\n\n{table(header, body)}"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per task, force error over frames, seeds as dots, medians as lines."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    force = curves(rows, QUANTITIES[0][0])
    figure, panels = plt.subplots(1, len(TASKS), figsize=(4 * len(TASKS), 3.6), layout="constrained")
    for panel, task in zip(panels, TASKS, strict=True):
        for arm, colour, label in (("scratch", "#888888", "from scratch"), ("finetune", "#c1440e", "fine-tuned")):
            curve = {n: errors for n, errors in force[task.name, arm].items() if n != ZERO}
            panel.plot(list(curve), [median(errors) for errors in curve.values()], "-", color=colour, label=label)
            for n, errors in curve.items():
                panel.plot([n] * len(errors), errors, ".", color=colour, markersize=5)
        for error in force[task.name, "finetune"].get(ZERO, [])[:1]:
            panel.axhline(error, color="#c1440e", linestyle=":", linewidth=1, label="zero-shot")
        panel.set(xscale="log", yscale="log", xlabel="training frames", title=task.name)
        panel.set_xticks(list(STEPS), [str(n) for n in STEPS])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("test force RMSE (meV/Å)")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cell(errors: Sequence[float] | None) -> str:
    if not errors:
        return "–"
    low, high = min(errors), max(errors)
    return f"{median(errors):.3g} ({low:.3g}–{high:.3g})" if len(errors) > 1 else f"{errors[0]:.3g}"


def _name(row: dict[str, Any]) -> str:
    return _usual(row).name if _usual(row).steps == row["steps"] and usual_settings(row) else ""
