"""Distil a potential into a layer-free student on the bundled germanium set: loss of accuracy, gain in speed.

    python benchmarks/distill.py [TEACHER] [--steps N] [--output DIR]

Without TEACHER one of size ``base`` is trained first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dpa1
from dpa1.distill import distill, table

DATA = Path(__file__).parents[1] / "examples" / "data" / "mlearn_Ge"


def main() -> None:
    """Train the teacher unless there is one, distil, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher", nargs="?")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("runs/distill"))
    given = parser.parse_args()
    teacher = given.teacher
    if teacher is None:
        config = {
            "data": {"train": str(DATA / "train.xyz.gz")},
            "model": {"size": "base", "cutoff": 5.0},
            "training": {"steps": given.steps},
            "output": str(given.output / "teacher"),
        }
        teacher = dpa1.train(config).model
    frames = dpa1.read(str(DATA / "train.xyz.gz"))
    print(table(distill(teacher, frames, output=given.output / "student", augment=1, steps=given.steps)))


if __name__ == "__main__":
    main()
