"""What ``dpa1 finetune pbe`` does with a few frames and no configuration, and with other choices in place of its own.

python benchmarks/finetune_defaults.py           # finished runs are kept: call it again to go on
python benchmarks/finetune_defaults.py --page    # what has finished → docs/results/finetune-defaults.md

The tasks, test frames and draws of training frames are those of ``sample_efficiency.py``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import DATASETS, errors, machine, save, table
from sample_efficiency import TASKS, Task, lay_out

FRAMES = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "full": {"finetune": {"method": "full"}},
    "lora": {"finetune": {"method": "lora"}},
    "256 atoms per step": {"training": {"batch_atoms": 256}},
    "learning rate 3e-3": {"training": {"learning_rate": 3e-3}},
}
# What is the default of a task is not measured twice; one frame of water is a batch whatever the budget.
MANY, ONE = ("NbMoTaW", "LiMnO"), ("LiGePS", "aspirin", "water")
VARIED = {"full": MANY, "lora": ONE, "256 atoms per step": (*MANY, *ONE[:2]), "learning rate 3e-3": MANY}
QUANTITIES = {"force_rmse_meV_A": "Force RMSE (meV/Å)", "energy_rmse_meV_atom": "Energy RMSE (meV/atom)"}


@dataclass(frozen=True)
class Run:
    """One fine-tune."""

    task: Task
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.variant.replace(' ', '-')}-{self.seed}"


def do(run: Run, data: Path, base: str, work: Path) -> None:
    """Fine-tune on one thread and write ``result.json``."""
    import torch

    import dpa1

    torch.set_num_threads(1)
    folder = work / run.name
    lay_out(run.task, FRAMES, run.seed, data, folder)
    changes = VARIANTS[run.variant]
    values = {
        "data": {"train": str(folder / "train.xyz")},
        "training": {"threads": 1, "device": "cpu", **changes.get("training", {})},
        "finetune": {"base": base, "level": run.task.level, **changes.get("finetune", {})},
        "output": str(folder / "run"),
        "seed": run.seed,
    }
    started = time.perf_counter()
    result = dpa1.train(values, quiet=True)
    row = {"task": run.task.name, "variant": run.variant, "seed": run.seed}
    row |= {"wall_s": round(time.perf_counter() - started, 1)}
    save({**row, **errors(result.model, folder / "test.xyz")}, folder / "result.json")
    shutil.rmtree(folder / "run")


def wanted(seeds: int) -> list[Run]:
    """All runs, those of one seed together."""
    return [
        Run(task, variant, seed)
        for seed in range(1, seeds + 1)
        for task in TASKS
        for variant in VARIANTS
        if task.name in VARIED.get(variant, (task.name,))
    ]


def page(args: argparse.Namespace) -> str:
    """The tables of what has finished; raw results are written beside it."""
    rows = [json.loads(path.read_text()) for path in sorted(args.work.glob("*/result.json"))]
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    save({"machine": machine(), "base": args.base, "frames": FRAMES, "results": rows}, args.raw)
    parts = [
        "# A few frames and no configuration\n",
        f"Errors on the test frames of five [tasks](sample-efficiency.md) after `dpa1 finetune {args.base}` on {FRAMES} frames with the "
        "defaults, and with another choice in place of theirs: medians of the draws of training frames, all draws in brackets.\n",
    ]
    for quantity, title in QUANTITIES.items():
        body = []
        for task in TASKS:
            found = [[r for r in rows if r["task"] == task.name and r["variant"] == name] for name in names]
            body.append([task.name, *(_cell([r[quantity] for r in some]) for some in found)])
        parts += [f"## {title}\n", table(["task", *names], body)]
    seconds = [[r["wall_s"] for r in rows if r["variant"] == name] for name in names]
    parts.append("Median time of a run: " + ", ".join(
        f"{name} {statistics.median(some):.0f} s" for name, some in zip(names, seconds, strict=True)
    ) + ".\n")  # fmt: skip
    parts.append(
        "Command: `python benchmarks/finetune_defaults.py && python benchmarks/finetune_defaults.py --page`. "
        f"{machine()}. Raw: [raw/finetune-defaults.json](raw/finetune-defaults.json)."
    )
    return "\n".join(parts) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.3g} ({', '.join(f'{v:.3g}' for v in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATASETS)
    parser.add_argument("--base", default="pbe")
    parser.add_argument("--work", type=Path, default=Path("runs/finetune-defaults"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="write the page of what has finished")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    args.work, args.raw = args.work.resolve(), args.output / "raw/finetune-defaults.json"
    if args.page:
        (args.output / "finetune-defaults.md").write_text(page(args), encoding="utf-8")
        return
    for run in wanted(args.seeds):
        if not (args.work / run.name / "result.json").exists():
            do(run, args.data.resolve(), args.base, args.work)
            print(run.name, flush=True)


if __name__ == "__main__":
    main()
