"""Small real calculations (ASE's EMT potential of Cu and Al) and a configuration that trains on them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

MODEL = {"cutoff": 4.0, "embedding": [4, 8], "axis": 4, "attention_layers": 1, "attention_width": 8, "fitting": [8, 8],
         "type_embedding": 4}  # fmt: skip


def emt_frames(n: int, seed: int = 0, elements: tuple[str, ...] = ("Cu", "Al")) -> list[Atoms]:
    """n shaken 8-atom alloys with energy, forces and stress."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (2, 1, 1)
        atoms.symbols = rng.choice(elements, len(atoms))
        atoms.rattle(0.1, rng=rng)
        frames.append(labelled(atoms))
    return frames


def labelled(atoms: Atoms) -> Atoms:
    """The same atoms with EMT's results attached."""
    work = atoms.copy()
    work.calc = EMT()
    results = {"energy": work.get_potential_energy(), "forces": work.get_forces()}
    if work.cell.rank == 3:
        results["stress"] = work.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def toy_config(folder: Path, **sections: Any) -> dict[str, Any]:
    """A configuration over ``folder/train.xyz`` (written here unless it exists); sections update the defaults."""
    data = folder / "train.xyz"
    if not data.exists():
        write(data, emt_frames(20))
    config: dict[str, Any] = {
        "data": {"train": str(data), "valid": 0.2},
        "model": MODEL,
        "training": {
            "steps": 20,
            "batch_frames": 2,
            "log_every": 5,
            "valid_every": 10,
            "threads": 1,
            "device": "cpu",
            "learning_rate": 2e-3,
            "optimizer": {"kind": "adam"},
        },
        "loss": {"energy": [0.02, 1], "force": [1000, 1]},
        "output": str(folder / "run"),
        "seed": 3,
    }
    for key, value in sections.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    return config
