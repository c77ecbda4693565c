"""Frames with labels of a known potential, and writers of every format that carries labels."""

import gzip
import lzma
from pathlib import Path

import dpdata
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

FILES = Path(__file__).parent / "files"


def labelled(atoms: Atoms) -> Atoms:
    """A copy with energy, forces and (when periodic) stress of ASE's EMT stored."""
    probe = atoms.copy()
    probe.calc = EMT()
    labels = {"energy": probe.get_potential_energy(), "forces": probe.get_forces()}
    if atoms.pbc.all():
        labels["stress"] = probe.get_stress()
    result = atoms.copy()
    result.calc = SinglePointCalculator(result, **labels)
    return result


def crystals(count: int = 3, seed: int = 0) -> list[Atoms]:
    """Skewed, rattled periodic cells of Cu and Al in two compositions."""
    random = np.random.default_rng(seed)
    images = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[: 1 + k % 2] = 13
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.08 * random.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.08 * random.normal(size=(4, 3))
        images.append(labelled(atoms))
    return images


def strain_derivative(atoms: Atoms, step: float = 1e-4) -> np.ndarray:
    """−∂E/∂ε of EMT by fourth-order differences, (3, 3) eV, symmetric part."""

    def energy(strain: np.ndarray) -> float:
        probe = atoms.copy()
        probe.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        probe.calc = EMT()
        return probe.get_potential_energy()

    result = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            unit = np.zeros((3, 3))
            unit[i, j] += 0.5
            unit[j, i] += 0.5
            parts = [f * energy(h * step * unit) for h, f in ((1, 8), (-1, -8), (2, -1), (-2, 1))]
            result[i, j] = -sum(parts) / (12 * step)
    return result


def systems(images: list[Atoms]) -> dpdata.MultiSystems:
    """The frames as dpdata holds them."""
    result = dpdata.MultiSystems()
    for atoms in images:
        result.append(dpdata.LabeledSystem(atoms, fmt="ase/structure"))
    return result


def _compressed(folder: Path, images: list[Atoms], suffix: str) -> Path:
    import zstandard

    plain = folder / "plain.xyz"
    write(plain, images, format="extxyz")
    press = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = folder / f"frames.xyz{suffix}"
    path.write_bytes(press(plain.read_bytes()))
    return path


def _vasp(folder: Path, images: list[Atoms]) -> Path:
    """An OUTCAR with what ASE reads of it, one ionic step per frame of one composition."""
    from ase.units import GPa

    first = images[0]
    kinds = list(dict.fromkeys(first.get_chemical_symbols()))
    counts = [first.get_chemical_symbols().count(kind) for kind in kinds]
    lines = [" vasp.6.3.0", " INCAR:"]
    lines += [f" POTCAR:    PAW_PBE {kind} 01Jan2000" for _ in range(2) for kind in kinds]
    lines += [f"   ions per type =  {' '.join(map(str, counts))}", f"   NIONS = {len(first)}", " ISPIN  =      1"]
    lines += [f"   NSW    =  {len(images):5d}    number of steps for IOM"]
    for step, atoms in enumerate(images, start=1):
        voigt = atoms.calc.results["stress"] / GPa * -10
        xx, yy, zz, yz, xz, xy = voigt
        lines += [f"--------------------------------------- Iteration {step:6d}(   1)  -----"]
        lines += ["  direct lattice vectors                 reciprocal lattice vectors"]
        lines += ["  " + " ".join(f"{x:.10f}" for x in [*row, 0.0, 0.0, 0.0]) for row in atoms.cell[:]]
        lines += [f"  in kB  {xx:.8f} {yy:.8f} {zz:.8f} {xy:.8f} {yz:.8f} {xz:.8f}"]
        lines += [" POSITION                                       TOTAL-FORCE (eV/Angst)", " " + "-" * 80]
        for position, force in zip(atoms.positions, atoms.calc.results["forces"], strict=True):
            lines += [" ".join(f"{x:.10f}" for x in [*position, *force])]
        lines += [" " + "-" * 80, "    total drift:   0.0 0.0 0.0", ""]
        energy = atoms.calc.results["energy"]
        lines += ["  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)", "  " + "-" * 50]
        lines += [f"  free  energy   TOTEN  =     {energy:.10f} eV", ""]
        lines += [f"  energy  without entropy=    {energy:.10f}  energy(sigma->0) =    {energy:.10f}"]
    lines += [" General timing and accounting informations for this job:"]
    path = folder / "OUTCAR"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_as(kind: str, images: list[Atoms], folder: Path) -> Path:
    """Write labelled frames in one format and return what to read."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in (".gz", ".xz", ".zst"):
        return _compressed(folder, images, kind)
    if kind == "OUTCAR":
        return _vasp(folder, images)
    if kind in ("deepmd/npy", "deepmd/npy/mixed"):
        systems(images).to(kind, str(folder / "data"))
        return folder / "data"
    if kind == "padded":
        systems(images).to("deepmd/npy/mixed", str(folder / "data"), atom_numb_pad=8)
        return folder / "data"
    if kind == "deepmd/hdf5":
        systems(images).to(kind, str(folder / "data.h5"))
        return folder / "data.h5"
    if kind == "deepmd/lmdb":
        systems(images).to(kind, str(folder / "data.lmdb"))
        return folder / "data.lmdb"
    if kind == "store":
        from dpa1.data.read import read
        from dpa1.data.store import write_store

        write(folder / "plain.xyz", images, format="extxyz")
        write_store(read(folder / "plain.xyz"), folder / "data.dpa1data")
        return folder / "data.dpa1data"
    path = folder / f"frames.{kind}"
    write(path, images, format={"xyz": "extxyz"}.get(kind))
    return path


LABELLED = (
    "xyz", ".gz", ".xz", ".zst", "traj", "db", "json", "OUTCAR", "deepmd/npy", "deepmd/npy/mixed", "padded",
    "deepmd/hdf5", "deepmd/lmdb", "store",
)  # fmt: skip
