"""Ablation in the spirit of the paper: 0–3 attention layers, gate on and off, everything else equal, on two real sets.

python benchmarks/ablation.py run --workers 2     # finished runs are kept: call it again to go on
python benchmarks/ablation.py page                # what has finished → docs/results/ablation.md
python benchmarks/ablation.py run --quick         # a minute, to see that it works; its numbers mean nothing

All runs of a set have the same frames, batches, loss, optimizer and number of steps; no frame is held out for validation,
and the model is the average of the weights at the last step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import DATASETS, ONE_THREAD, save, structures

VARIANTS = ((0, None), (1, True), (1, False), (2, True), (2, False), (3, True), (3, False))  # layers, gate
MODEL = {"size": "small", "cutoff": 5.0}


@dataclass(frozen=True)
class Test:
    """Frames to test on: at most ``frames`` of those of a file whose ``config_type`` is (not) ``group``."""

    what: str
    path: str
    frames: int
    group: str | None = None
    inside: bool = True


@dataclass(frozen=True)
class Case:
    """A set: ``frames`` of the training file, evenly spread over it, and two tests, the first the harder one."""

    name: str
    what: str
    train: str
    frames: int
    atoms: int
    tests: tuple[Test, Test]


CASES = (
    Case("NbMoTaW", "alloy of Nb, Mo, Ta, W (PBE); trained on elements and binaries only",
         "NbMoTaW_snap/train.xyz.gz", 512, 54,
         (Test("ternary and quaternary cells", "NbMoTaW_snap/test.xyz.gz", 16, "Multinary_Test"),
          Test("elements and binaries", "NbMoTaW_snap/test.xyz.gz", 90, "Multinary_Test", inside=False))),
    Case("3BPA", "molecule 3-(benzyloxy)pyridin-2-amine (ωB97X/6-31G(d)); trained at 300 K",
         "3BPA/train_300K.xyz.gz", 500, 54,
         (Test("600 K", "3BPA/test_600K.xyz.gz", 150), Test("300 K", "3BPA/test_300K.xyz.gz", 150))),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training."""

    case: Case
    layers: int
    gate: bool | None
    seed: int
    steps: int

    @property
    def data(self) -> str:
        return f"{self.case.name}_{self.case.frames}frames"

    @property
    def name(self) -> str:
        gate = {None: "", True: "_gate", False: "_nogate"}[self.gate]
        return f"{self.case.name}_{self.layers}layers{gate}_seed{self.seed}_{self.case.frames}frames_{self.steps}steps"


def spread(frames: list[Any], most: int) -> list[Any]:
    """At most so many of the frames, evenly over the list."""
    return [frames[round(k * (len(frames) - 1) / max(1, most - 1))] for k in range(min(most, len(frames)))]


def prepare(case: Case, data: Path, folder: Path) -> None:
    """Write the training and test frames that all runs of a set share."""
    from ase.io import write

    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": spread(structures(data / case.train), case.frames)}
    for k, test in enumerate(case.tests):
        frames = structures(data / test.path)
        if test.group is not None:
            frames = [atoms for atoms in frames if (atoms.info.get("config_type") == test.group) == test.inside]
        parts[f"test{k}"] = spread(frames, test.frames)
    for name, frames in parts.items():
        write(folder / f"{name}.xyz", frames, format="extxyz")


def do(run: Run, work: Path) -> dict[str, Any]:
    """Train, evaluate, write ``result.json``."""
    import torch

    import dpa1
    from dpa1.config.run import config_from
    from dpa1.training.run import train

    torch.set_num_threads(1)
    folder, data = work / run.name, work / run.data
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        values: dict[str, Any] = {
            "data": {"train": str(data / "train.xyz"), "valid": None},
            "model": {**MODEL, "attention_layers": run.layers, **({} if run.gate is None else {"gate": run.gate})},
            "training": {
                "steps": run.steps, "batch_atoms": run.case.atoms, "threads": 1, "prefetch": False, "device": "cpu",
                "ema": 0.99, "log_every": run.steps, "checkpoint_every": 10**9,
            },
            "output": f"{scratch}/run",
            "seed": run.seed,
        }  # fmt: skip
        load, begun, wall = os.getloadavg()[0], time.process_time(), time.perf_counter()
        result = train(config_from(values, run.name), quiet=True)
        spent, wall = time.process_time() - begun, time.perf_counter() - wall
        potential = dpa1.load(str(result.model))
    errors = []
    for k, test in enumerate(run.case.tests):
        frames = dpa1.read(str(data / f"test{k}.xyz"))
        found = dpa1.evaluate(potential, frames)
        errors.append({
            "test": test.what, "frames": len(frames),
            "energy_mae_meV_atom": round(1e3 * found["energy_mae"], 3),
            "energy_rmse_meV_atom": round(1e3 * found["energy_rmse"], 3),
            "force_rmse_meV_A": round(1e3 * found["force_rmse"], 2),
        })  # fmt: skip
    row = {
        "case": run.case.name, "layers": run.layers, "gate": run.gate, "seed": run.seed, "steps": run.steps,
        "train_frames": run.case.frames, "batch_atoms": run.case.atoms,
        "parameters": sum(p.numel() for p in potential.parameters()), "errors": errors,
        "cpu_s": round(spent, 1), "cpu_ms_step": round(1e3 * spent / run.steps, 1), "wall_s": round(wall, 1),
        "load": round(load, 1), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }  # fmt: skip
    save(row, folder / "result.json")
    return row


def asked(args: argparse.Namespace) -> Iterator[Run]:
    """The runs that are wanted; every variant of one seed before the next seed."""
    for seed in args.seeds:
        for layers, gate in VARIANTS:
            for case in CASES:
                if case.name in args.cases:
                    small = replace(case, frames=32) if args.quick else case
                    yield Run(small, layers, gate, seed, 20 if args.quick else args.steps)


def execute(args: argparse.Namespace) -> None:
    """Do what has not been done, ``--workers`` processes of one thread at a time."""
    os.environ.update(ONE_THREAD)
    runs = [run for run in asked(args) if not (args.work / run.name / "result.json").exists()]
    for run in runs:
        if not (args.work / run.data / "test1.xyz").exists():
            prepare(run.case, args.data, args.work / run.data)
    context = multiprocessing.get_context("spawn")
    # A process of its own for each run: what one leaves behind in memory or caches does not reach the next.
    with ProcessPoolExecutor(args.workers, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(do, run, args.work) for run in runs]
        for done, job in enumerate(as_completed(jobs), 1):
            print(f"{done}/{len(jobs)}", json.dumps(job.result()), flush=True)


def finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of the runs that are wanted and done."""
    paths = [args.work / run.name / "result.json" for run in asked(args)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 steps on 32 frames, one seed, results kept apart")
    parser.add_argument("--data", type=Path, default=DATASETS)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="where results are kept")
    parser.add_argument("--output", type=Path, help="docs/results, or below --work with --quick")
    args = parser.parse_args(argv)
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if args.quick:
        args.work, args.seeds = args.work / "quick", args.seeds[:1]
    args.output = args.output or (args.work if args.quick else Path("docs/results"))
    if args.what == "run":
        execute(args)
    from ablation_page import write_page

    print(write_page(finished(args), args))


if __name__ == "__main__":
    main()
