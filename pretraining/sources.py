"""The open data behind the shipped model ``pbe``: what is taken from where, and which frames are held back.

Frames are held back by family, never one by one: all frames of one reduced formula (one prototype, where the file names
it) are on the same side, in every file, so that a held-back frame has no near-duplicate among the training frames.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import iread, write

HELD_BACK = 0.05  # share of the families, by hash
AT_LEAST = 0.02  # share of the frames of each source


@dataclass(frozen=True)
class Source:
    """One data set: its files below the folder of data sets (``here``: below this one), level of theory, licence, and how it is drawn from.

    ``held``: files held back as published; without them families are. ``share``: chance of a frame to come from here.
    ``forces``: whether its forces are labels (not zeros by symmetry). ``without``: frames with these elements are not used.
    ``held_every``: of the frames held back one in so many is kept, where there are more than validation needs.
    ``max_virial``: eV per atom, of the largest component beyond which the label of stress is taken for an artefact and dropped.
    ``misfit``: its energies are on a branch the model cannot follow, so the final energy bias is not fitted to them.
    """

    name: str
    files: tuple[str, ...]
    share: float
    licence: str
    origin: str
    level: str = "pbe"
    held: tuple[str, ...] = ()
    forces: bool = True
    without: tuple[str, ...] = ()
    held_every: int = 1
    misfit: bool = False
    max_virial: float = math.inf
    here: bool = False

    def path(self, datasets: Path, file: str) -> Path:
        return (Path(__file__).parent if self.here else datasets) / file


MATTERSIM = ("MIT, CC-BY-4.0", "github.com/microsoft/mattersim")
MLEARN = ("BSD-3-Clause", "github.com/materialsvirtuallab/mlearn")
MIT = "MIT"
# Their dimers jump between electronic branches (down to −40 eV/atom), and most have f electrons that the crystals' PAW
# potentials keep in the core: another energy scale.
LANTHANIDES = tuple("Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb".split())
SOURCES = (
    *(
        Source(name, (f"mattersim_benchmarks/{name}.xyz.gz",), share, *MATTERSIM, max_virial=limit)
        for name, share, limit in (
            ("mptrj-random-1k", 1.5, math.inf),
            # Up to 1,800 GPa, at ordinary volumes and next to no forces.
            ("mptrj-highest-stress-1k", 1.0, 15.0),
            ("alexandria-random-1k", 0.7, math.inf),
            ("mpf-TP", 2.5, math.inf),
            ("mpf-alkali-TP", 1.5, math.inf),
            ("random-TP", 2.5, math.inf),
        )
    ),
    Source(
        "diatomics", ("diatomics_PBE/PBE.xyz.gz",), 0.3, MIT, "github.com/janosh/matbench-discovery",
        without=LANTHANIDES, misfit=True,
    ),
    *(
        Source(f"mlearn-{e}", (f"mlearn_{e}/train.xyz.gz",), 0.25, *MLEARN, held=(f"mlearn_{e}/test.xyz.gz",))
        for e in ("Li", "Mo", "Ni", "Si")
    ),
    Source(
        "LPS-autoplex", ("LPS_autoplex/train.xyz.gz",), 2.0, "BSD-3-Clause", "github.com/autoatml/autoplex",
        level="pbe-lps", held=("LPS_autoplex/test.xyz.gz",),
    ),
    Source("oxides-BO2", ("oxides_BO2_PBE/all.xyz.gz",), 0.1, MIT, "github.com/Open-Catalyst-Project/ocp"),
    Source(
        "3BPA", ("3BPA/train_300K.xyz.gz", "3BPA/train_mixedT.xyz.gz"), 1.2, MIT, "github.com/davkovacs/BOTNet-datasets",
        level="wb97x", held=("3BPA/test_600K.xyz.gz",), held_every=30,
    ),
    Source(
        "AgAu", ("AgAu_pypolymlp/train.xyz.gz",), 1.0, "BSD-3-Clause", "github.com/sekocha/pypolymlp",
        level="agau", held=("AgAu_pypolymlp/test.xyz.gz",), held_every=6,
    ),
    Source(
        "acwf-eos", ("acwf_eos_PBE/unaries.xyz.gz", "acwf_eos_PBE/oxides.xyz.gz"), 0.5, MIT,
        "github.com/aiidateam/acwf-verification-scripts", level="pbe-acwf", forces=False,
    ),
    *(
        Source(f"xtb-{name}", (f"molecules/{name}.xyz.gz",), share, MIT, "pretraining/molecules of this project", level="gfn1-xtb", here=True)
        for name, share in (("molecules", 5.0), ("clusters", 2.5), ("water", 3.0))
    ),
)  # fmt: skip


def prepare(datasets: Path, folder: Path) -> None:
    """Write ``train/NAME.xyz.gz`` and ``valid/NAME.xyz.gz`` of every source, and ``held_back.json`` with the families."""
    held: dict[str, list[str]] = {}
    for part in ("train", "valid"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        parts: dict[str, list[Atoms]] = {"train": [], "valid": []}
        found = {file: list(iread(source.path(datasets, file), ":")) for file in (*source.files, *source.held)}
        found = {
            file: [atoms for atoms in frames if not set(source.without) & set(atoms.symbols)]
            for file, frames in found.items()
        }
        families = Counter(_family(atoms) for file in source.files for atoms in found[file])
        held_families = _held_back(families)
        for file, frames in found.items():
            for atoms in frames[:: source.held_every if file in source.held else 1]:
                back = file in source.held if source.held else _family(atoms) in held_families
                parts["valid" if back else "train"].append(_labelled(atoms, source))
        for part, frames in parts.items():
            with gzip.open(folder / part / f"{source.name}.xyz.gz", "wt", compresslevel=6) as file:
                write(file, frames, format="extxyz")
        back = {atoms.info["family"] for atoms in parts["valid"]}
        held[source.name] = list(source.held) if source.held else sorted(back)
        print(f"{source.name}: {len(parts['train'])} frames to train on, {len(parts['valid'])} held back", flush=True)
    (folder / "held_back.json").write_text(json.dumps(held, indent=1), encoding="utf-8")


def data_section(folder: Path) -> dict[str, Any]:
    """The ``data`` section of the configuration, for files written by ``prepare``."""

    def entries(part: str) -> Iterator[dict[str, Any]]:
        for source in SOURCES:
            entry = {"path": str(folder / part / f"{source.name}.xyz.gz"), "name": source.name, "level": source.level}
            yield {**entry, "share": source.share} if part == "train" else entry

    return {"train": list(entries("train")), "valid": list(entries("valid"))}


def _family(atoms: Atoms) -> str:
    named = atoms.info.get("config_type")
    return str(named) if named else atoms.symbols.formula.reduce()[0].format("hill")


def _held_back(families: Counter[str]) -> set[str]:
    """Those below ``HELD_BACK``, and as many more as it takes to hold back ``AT_LEAST`` of the frames."""
    order, frames, held = sorted(families, key=_place), 0, set()
    for family in order:
        if _place(family) >= HELD_BACK and frames >= AT_LEAST * families.total():
            break
        held.add(family)
        frames += families[family]
    return held


def _place(family: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") / 2**64


def _labelled(atoms: Atoms, source: Source) -> Atoms:
    """The frame with its energy, forces and virial and nothing else."""
    from ase.calculators.singlepoint import SinglePointCalculator

    results = dict(atoms.calc.results)
    labels = {
        key: results[key] for key in ("energy", "forces") if key in results and (source.forces or key != "forces")
    }
    if "stress" in results and abs(results["stress"]).max() * atoms.get_volume() <= source.max_virial * len(atoms):
        labels["stress"] = results["stress"]
    bare = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info["family"] = _family(atoms)
    bare.calc = SinglePointCalculator(bare, **labels)
    return bare
