"""Fine-tune the model that comes with the package, next to one from scratch, and simulate with it: ``make demo``.

Every run goes to a folder of its own, demo/run-1, demo/run-2…; nothing is overwritten. The commands are those a user
would type; ``report.html`` in that folder shows everything. ``--base`` takes another model to start from.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read, write
from demo_report import MODELS, compare, conclusion, draw, write_report

import dpa1
from dpa1.analysis.plots import read_csv
from dpa1.config.run import read_values
from dpa1.errors import UserError

EXAMPLES = Path(__file__).resolve().parent
SETTINGS, DATA = EXAMPLES / "demo.yaml", EXAMPLES / "data" / "mlearn_Ge"
FRAMES, STEPS, SEED = 40, 300, 1
RATES = {"finetuned": 3e-3, "scratch": 4e-3}
TEMPERATURE, MD_STEPS, TIMESTEP = 300, 500, 2.0  # K, –, fs
PARTS = 5
BEGUN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pbe", help="model to start from: a name or a file (default: pbe)")
    parser.add_argument("--level", default="pbe", help="its level of theory (default: pbe)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, for both arms (default: {STEPS})")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"to train on, for both arms (default: {FRAMES})")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the arms run side by side, a core for each
    base = dpa1.load(args.base)
    folder = shown(new_folder(EXAMPLES.parent / "demo"))
    train, test = folder / "train.xyz", DATA / "test.xyz.gz"
    count, unseen = few_frames(DATA / "train.xyz.gz", args.frames, train), dpa1.read(test)

    title(1, f"Fine-tune {args.base} on {count} frames; beside it, train the same architecture from scratch")
    config = folder / "scratch.json"
    config.write_text(
        json.dumps(scratch(base, train, test, folder / "scratch", args.steps), indent=2), encoding="utf-8"
    )
    log = folder / "scratch.log"
    with log.open("w", encoding="utf-8") as file:
        other = subprocess.Popen(command("train", config, f"> {log} &"), stdout=file, stderr=subprocess.STDOUT)
    try:
        run(
            "finetune", args.base, shown(train), "--level", args.level, "--test", shown(test), "--config", shown(SETTINGS),
            "--method", "full", "--steps", args.steps, "--learning-rate", RATES["finetuned"], "--seed", SEED,
            "--output", folder / "finetuned",
        )  # fmt: skip
        wait(other, folder / "scratch" / "metrics.csv", args.steps)
    finally:
        other.terminate()
    if other.returncode:
        sys.exit(log.read_text(encoding="utf-8").splitlines()[-1])

    title(2, f"Evaluate on the {len(unseen)} frames of the published test split: before, after, and from scratch")
    potentials = dict(
        zip(
            MODELS, (base, *(dpa1.load(folder / name / "model.dpa1") for name in ("finetuned", "scratch"))), strict=True
        )
    )
    found = compare(potentials, unseen, args.level)
    print(conclusion(found, count, args.steps))

    title(3, "How the pretrained model arranges the elements")
    run("elements", args.base, "--permutations", 2000, "--output", folder / "elements")

    title(4, f"Molecular dynamics with the fine-tuned model: {MD_STEPS * TIMESTEP / 1000:g} ps at {TEMPERATURE} K")
    structure = folder / "crystal.xyz"
    crystal().write(structure)
    run(
        "md", folder / "finetuned" / "model.dpa1", structure, "--temperature", TEMPERATURE, "--steps", MD_STEPS,
        "--timestep", TIMESTEP, "--output", folder / "md",
    )  # fmt: skip

    title(5, "Draw, and write the page")
    draw(folder, found, base)
    write_report(
        folder, found, base, train=train, test=test, steps=args.steps, seconds=time.monotonic() - BEGUN,
        texts=[conclusion(found, count, args.steps)], config=config.read_text(encoding="utf-8"),
    )  # fmt: skip
    done(folder)


def few_frames(source: Path, count: int, target: Path) -> int:
    """Write frames that lie evenly through ``source``, whose order is that of its groups. Returns how many."""
    frames = read(source, ":")
    places = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    write(target, [frames[k] for k in places], format="extxyz")
    return len(places)


def scratch(base: Any, train: Path, test: Path, output: Path, steps: int) -> dict[str, Any]:
    """The configuration of the arm without pretraining: architecture of the base; data, loss, steps and seed of the other."""
    values = read_values(SETTINGS)
    own = base.config.model_dump(mode="json")
    return {
        **values,
        "data": {"train": str(train.absolute()), "test": str(test), **values["data"]},
        "model": {key: value for key, value in own.items() if key not in ("elements", "mean_neighbors", "sel")},
        "training": {**values["training"], "steps": steps, "learning_rate": RATES["scratch"]},
        "output": str(output.absolute()),
        "seed": SEED,
    }


def crystal() -> Any:
    """A perfect crystal: 64 atoms of diamond-structure germanium."""
    from ase.build import bulk

    return bulk("Ge", "diamond", a=5.76, cubic=True).repeat(2)


def command(verb: str, *arguments: Any) -> list[str]:
    """A command of the package, shown as it would be typed; what begins with > or & is for the eye only."""
    words = [verb, *map(str, arguments)]
    typed = [word for word in words if word[0] not in ">&"]
    print("$", shlex.join(["dpa1", *typed]), *(word for word in words if word[0] in ">&"), flush=True)
    return [sys.executable, "-m", "dpa1", *typed]


def run(verb: str, *arguments: Any) -> None:
    """One command; its own message explains a failure."""
    code = subprocess.call(command(verb, *arguments))
    if code:
        sys.exit(code)


def wait(process: subprocess.Popen[bytes], metrics: Path, steps: int) -> None:
    """Until the arm in the background has finished, with a line that says how far it is."""
    while process.poll() is None:
        time.sleep(0.5)
        if sys.stderr.isatty():
            try:
                step = int(read_csv(metrics)["step"][-1])
            except (OSError, UserError):
                step = 0
            print(f"\rfrom scratch: step {step}/{steps}\x1b[K", end="", file=sys.stderr, flush=True)
    print("\r\x1b[K" * sys.stderr.isatty(), end="", file=sys.stderr, flush=True)


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


def title(part: int, text: str) -> None:
    """What comes now, under a bar of how far the demo is."""
    seconds = int(time.monotonic() - BEGUN)
    bar = "━" * (6 * (part - 1)) + "─" * (6 * (PARTS - part + 1))
    print(f"\n{bar}  part {part} of {PARTS}, {seconds // 60}:{seconds % 60:02d}\n{text}\n", flush=True)


def done(folder: Path) -> None:
    """Where everything lies."""
    print(f"\n{'━' * 6 * PARTS}  done in {time.monotonic() - BEGUN:.0f} s. Everything lies in {folder}/")
    for place, what in (
        ("report.html", "the page: comparison, curves, parity, elements to turn, MD"),
        ("demo.png", "the picture of the README"),
        ("finetuned/", "model.dpa1, configuration, log, its own report.html with before and after"),
        ("scratch/", "the same for the arm from scratch"),
        ("elements/", "elements.png, elements.html, table and tests"),
        ("md/", "trajectory.xyz, thermo.csv"),
    ):
        print(f"  {folder / place!s:<32}{what}")
    print(f"\nNext: dpa1 show {folder / 'finetuned' / 'model.dpa1'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
