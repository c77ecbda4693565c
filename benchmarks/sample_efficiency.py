"""Learning curves from scratch and from the pretrained model, on tasks that the pretraining has not seen.

python benchmarks/sample_efficiency.py run --workers 2          # finished runs are kept: call it again to go on
python benchmarks/sample_efficiency.py run --tasks LiGePS --arms scratch --sizes 32 --multiples 0.5 1 2    # tune the length
python benchmarks/sample_efficiency.py restore --arms scratch    # take the runs of the published results as finished
python benchmarks/sample_efficiency.py page                     # what has finished → docs/results/sample-efficiency.md

Both arms have the architecture of the base, the same frames (the first n of a permutation that the seed draws, so that
larger sets hold the smaller ones), batches, loss, number of steps and cosine decay; no frame is held out for validation,
and the model is the average of the weights at the last step. The learning rates stand with the tasks below.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from common import DATASETS, save

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# Optimizer steps for each number of frames, times the task's length.
STEPS = {2: 300, 4: 300, 8: 300, 16: 350, 32: 450, 64: 600, 128: 700, 256: 800, 512: 1000}
ZERO = 0  # "frames" of the run that only refits the energy bias of the pretrained model …
BIAS_FRAMES = 8  # … to these
# Frames of the trials that chose the settings → up to how many frames these serve.
TUNED_AT = {2: 2, 4: 4, 8: 16, 32: 64, 128: 512}


@dataclass(frozen=True)
class Setting:
    """Learning rates from scratch and of the fine-tune, and its method: the best, or nearly so, of those tried with seed 1."""

    scratch: float
    finetune: float
    method: str


def _settings(scratch: Sequence[float], finetune: Sequence[float], methods: str) -> tuple[Setting, ...]:
    """One setting for each of ``TUNED_AT``."""
    return tuple(map(Setting, scratch, finetune, methods.split()))


@dataclass(frozen=True)
class Task:
    """A data set: files, the ``config_type`` of the test frames, test frames at most, atoms per step, length.

    ``settings``: those chosen with as many frames as ``TUNED_AT`` says.  ``level``: of the base, from which the fine-tune
    starts.  ``without``: reduced formulas that the pretraining has as well, so frames of them are left out here.
    ``least``: frames below which an element may be missing, so that a model from scratch cannot be tested; one that is
    fine-tuned knows it from its base.
    """

    name: str
    train: str
    test: str
    atoms: int
    settings: tuple[Setting, ...]
    test_frames: int = 100
    length: float = 1.0
    only_test: str = ""
    what: str = ""
    without: tuple[str, ...] = ()
    level: str = "pbe"
    least: int = 2

    def takes(self, arm: str, frames: int) -> bool:
        """Whether there is such a point of a curve."""
        return arm == "finetune" or frames >= self.least


TASKS = (
    Task("NbMoTaW", "NbMoTaW_snap/train.xyz.gz", "NbMoTaW_snap/test.xyz.gz", 54, only_test="Multinary_Test", least=8,
         settings=_settings((5e-3, 5e-3, 5e-3, 2e-3, 2e-3), (3e-4, 3e-4, 1e-4, 5e-4, 5e-4), "heads heads full full full"),
         what="alloy, element transfer: elements and binaries of Nb, Mo, Ta, W → ternary and quaternary cells (PBE)"),
    Task("LiGePS", "LiGePS_SSE_PBE/train_50atoms.xyz.gz", "LiGePS_SSE_PBE/test_50atoms.xyz.gz", 50,
         settings=_settings((1e-2, 1e-2, 1e-2, 1e-2, 1e-2), (1e-4, 1e-3, 3e-3, 5e-3, 5e-3), "full full full full full"),
         what="sulfide electrolyte Li10GeP2S12, cells of 50 atoms (PBE)"),
    Task("aspirin", "aspirin_CCSD/train.xyz.gz", "aspirin_CCSD/test.xyz.gz", 63, level="wb97x",
         settings=_settings((2e-2, 2e-2, 2e-2, 2e-2, 2e-2), (1e-4, 1e-4, 5e-4, 3e-3, 5e-3), "full full full full full"),
         what="molecule aspirin (CCSD/cc-pVDZ)"),
    Task("water", "water_deepmd_example/train.xyz.gz", "water_deepmd_example/test.xyz.gz", 192, test_frames=25, length=0.4,
         settings=_settings((2e-2, 2e-2, 2e-2, 2e-2, 2e-2), (1e-2, 1e-2, 1e-2, 2e-2, 1e-2), "lora lora lora lora lora"),
         what="liquid water, 192 atoms (PBE0+TS)"),
    Task("LiMnO", "LiMnO_electrode_MatterTune/finetune.xyz.gz", "LiMnO_electrode_MatterTune/test.xyz.gz", 64,
         settings=_settings((2e-3, 2e-3, 2e-3, 5e-3, 5e-3), (3e-4, 3e-4, 3e-4, 3e-3, 3e-3), "lora lora lora lora lora"),
         without=("Li3Mn2O5", "LiMn4O8", "Li5MnO4", "Li5Mn3O8", "Li9Mn7O16"),
         what="lithium manganese oxides of many compositions (PBE+U)"),
)  # fmt: skip
ARMS = ("scratch", "finetune")
MACHINE = "machine.txt"  # beside the runs: what they ran on, where it was not this machine
RAW = "raw/sample-efficiency.json"  # the published results, in the output folder


@dataclass(frozen=True)
class Run:
    """One point of a curve."""

    task: Task
    arm: str
    frames: int
    seed: int
    multiple: float = 1.0
    rate: float | None = None
    method: str | None = None

    @property
    def steps(self) -> int:
        return round(STEPS.get(self.frames, 0) * self.task.length * self.multiple)

    @property
    def settings(self) -> dict[str, Any]:
        usual = setting_of(self.task, self.frames)
        if self.arm == "scratch":
            return {"learning_rate": self.rate or usual.scratch}
        return {"learning_rate": self.rate or usual.finetune, "method": self.method or usual.method}

    @property
    def name(self) -> str:
        chosen = "_".join(f"{value:g}" if isinstance(value, float) else value for value in self.settings.values())
        return f"{self.task.name}_{self.arm}_{self.frames}_seed{self.seed}_{self.steps}steps_{chosen}"


def setting_of(task: Task, frames: int) -> Setting:
    """The one chosen for so many frames; the run without a step takes that of most frames."""
    limits = list(TUNED_AT.values())
    return task.settings[sum(frames > limit for limit in limits) if frames != ZERO else -1]


def frames_of(task: Task, data: Path) -> tuple[list[str], list[str]]:
    """The text of all training frames and of the chosen test frames, which lie as far apart in their file as can be."""
    train, test = (
        [frame for frame in texts(data / file) if not task.without or formula(frame) not in task.without]
        for file in (task.train, task.test)
    )
    if task.only_test:
        test = [frame for frame in test if f"config_type={task.only_test} " in frame.split("\n", 2)[1] + " "]
    return train, test[:: max(1, len(test) // task.test_frames)][: task.test_frames]


def lay_out(task: Task, frames: int, seed: int, data: Path, folder: Path) -> int:
    """A new ``folder`` with ``train.xyz``, the frames the seed draws, and ``test.xyz``; returns how many test frames."""
    import numpy as np

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    every, test = frames_of(task, data)
    chosen = np.random.default_rng(seed).permutation(len(every))[:frames]
    (folder / "train.xyz").write_text("".join(every[i] for i in chosen))
    (folder / "test.xyz").write_text("".join(test))
    return len(test)


def texts(path: Path) -> list[str]:
    """The frames of an extended XYZ file, uncut and unread."""
    with gzip.open(path, "rt") as file:
        lines = file.readlines()
    frames, place = [], 0
    while place < len(lines):
        length = int(lines[place]) + 2
        frames.append("".join(lines[place : place + length]))
        place += length
    return frames


def formula(frame: str) -> str:
    """The reduced formula of a frame whose first column is the element."""
    from ase.formula import Formula

    return Formula("".join(line.split()[0] for line in frame.splitlines()[2:])).reduce()[0].format("hill")


def do(run: Run, data: Path, base: str, work: Path) -> dict[str, Any]:
    """Train or fine-tune, evaluate, write ``result.json``; the files of the run itself are removed."""
    import torch

    import dpa1
    from dpa1.config.run import config_from
    from dpa1.training.run import train

    torch.set_num_threads(1)
    folder = work / run.name
    zero_shot = run.frames == ZERO
    # Without a step the frames serve the energy bias only.
    test_frames = lay_out(run.task, BIAS_FRAMES if zero_shot else run.frames, run.seed, data, folder)
    potential = dpa1.load(base)
    potential.replay = []  # what is forgotten is measured elsewhere
    settings = dict(run.settings)
    method = settings.pop("method", None)
    steps = max(run.steps, 1)
    values: dict[str, Any] = {
        "data": {"train": str(folder / "train.xyz"), "valid": None},
        "training": {
            "steps": steps, "batch_atoms": run.task.atoms, "threads": 1, "prefetch": False, "device": "cpu",
            "ema": 0.99, "log_every": steps, "checkpoint_every": 10**9, **settings,
        },
        "loss": {"energy": [0.1, 1], "force": [100, 20]},
        "output": str(folder / "run"),
        "seed": run.seed,
    }  # fmt: skip
    if zero_shot:
        values["training"]["learning_rate"] = 1e-30
    if run.arm == "finetune":
        values["finetune"] = {"base": base, "method": method, "level": run.task.level}
    else:
        own = potential.config.model_dump(mode="json")
        values["model"] = {key: value for key, value in own.items() if key not in ("elements", "mean_neighbors", "sel")}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = train(config_from(values, run.name), quiet=True, base=potential if run.arm == "finetune" else None)
    after = resource.getrusage(resource.RUSAGE_SELF)
    metrics = dpa1.evaluate(dpa1.load(str(result.model)), dpa1.read(str(folder / "test.xyz")))
    row = {
        "task": run.task.name, "arm": run.arm, "frames": run.frames, "seed": run.seed, "steps": run.steps,
        **run.settings, "test_frames": test_frames,
        "energy_rmse_meV_atom": round(1e3 * metrics["energy_rmse"], 3),
        "energy_mae_meV_atom": round(1e3 * metrics["energy_mae"], 3),
        "force_rmse_meV_A": round(1e3 * metrics["force_rmse"], 2),
        "force_mae_meV_A": round(1e3 * metrics["force_mae"], 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    save(row, folder / "result.json")
    for part in ("run", "train.xyz", "test.xyz"):
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return row


def asked(args: argparse.Namespace) -> Iterator[Run]:
    """The runs that are wanted, short ones first, seed by seed."""
    for seed in args.seeds:
        for frames in args.sizes:
            for task in TASKS:
                if task.name not in args.tasks or frames > _available(task, args.data):
                    continue
                for arm in args.arms:
                    if not task.takes(arm, frames):
                        continue
                    for multiple in args.multiples:
                        for rate in args.rates or [None]:
                            yield Run(task, arm, frames, seed, multiple, rate, args.method)


@cache
def _available(task: Task, data: Path) -> int:
    return len(frames_of(task, data)[0])


def execute(args: argparse.Namespace) -> None:
    """Do what has not been done, ``--workers`` at a time."""
    runs = [run for run in asked(args) if not (args.work / run.name / "result.json").exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        jobs = {pool.submit(do, run, args.data, args.base, args.work): run for run in runs}
        for done, job in enumerate(as_completed(jobs), 1):
            print(f"{done}/{len(jobs)}", json.dumps(job.result()), flush=True)


def restore(args: argparse.Namespace) -> None:
    """Lay out the runs of the published results as if they had been made here, for the ``page`` or for runs beside them."""
    published = json.loads((args.output / RAW).read_text(encoding="utf-8"))
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / MACHINE).write_text(published["machine"], encoding="utf-8")
    for row in (*published["results"], *published["trials"], *published["longer"]):
        path = args.work / run_of(row).name / "result.json"
        if row["arm"] in args.arms and row["task"] in args.tasks and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save(row, path)


def run_of(row: dict[str, Any]) -> Run:
    """The run whose result this is."""
    usual = Run(next(task for task in TASKS if task.name == row["task"]), row["arm"], row["frames"], row["seed"])
    multiple = row["steps"] / usual.steps if usual.steps else 1.0
    other = {key: row[key] for key, value in usual.settings.items() if row[key] != value}
    return replace(usual, multiple=multiple, rate=other.get("learning_rate"), method=other.get("method"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [task.name for task in TASKS]
    parser.add_argument("what", choices=["run", "restore", "page"])
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--sizes", nargs="+", type=int, choices=[ZERO, *SIZES], default=[ZERO, *SIZES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--multiples", nargs="+", type=float, default=[1.0], help="of the usual number of steps")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates other than the usual one")
    parser.add_argument("--method", help="of the fine-tune, other than the usual one")
    parser.add_argument("--base", default="pbe")
    parser.add_argument("--data", type=Path, default=DATASETS)
    parser.add_argument("--work", type=Path, default=Path("runs/sample-efficiency"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if args.what == "run":
        execute(args)
    elif args.what == "restore":
        restore(args)
    else:
        from sample_efficiency_page import write_page

        write_page(args)


if __name__ == "__main__":
    main()
