"""Label molecules, their clusters and liquid water with GFN1-xTB: breadth of bonding that no open PBE set here has.

    pip install tblite rdkit
    python pretraining/molecules/make.py [--workers N] [--seed N]

writes ``molecules.xyz.gz``, ``clusters.xyz.gz`` and ``water.xyz.gz`` beside this file: frames of Langevin dynamics on the
GFN1-xTB surface (Grimme, Bannwarth and Shushkov, J. Chem. Theory Comput. 13, 1989 (2017), as tblite computes it) with energy
(eV) and forces (eV/Å). Molecules are those of ``SMILES`` and of every core with every substituent; none has the formula of
``WITHOUT``, so that aspirin stays a molecule the pretraining has not seen, nor its isomers.
"""

from __future__ import annotations

import argparse
import gzip
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from scipy.spatial.transform import Rotation

HERE = Path(__file__).parent
METHOD = "GFN1-xTB"
WITHOUT = "C9H8O4"  # aspirin
TIMESTEP, FRICTION, HYDROGEN = 1.0, 0.03, 2.0  # fs, 1/fs, mass in u: positions are distributed alike at any mass
TEMPERATURES = (400, 900)  # K, of molecules
MAX_FORCE = 30.0  # eV/Å, beyond which a structure has come apart

CORES = (
    "C{}", "CC{}", "CC(C){}", "C=C{}", "C#C{}", "C1CC1{}", "C1CCCC1{}", "c1ccc({})cc1", "Oc1ccc({})cc1", "Nc1cccc({})c1",
    "OC(=O)c1ccc({})cc1", "Cc1ccccc1{}", "n1ccc({})cc1", "o1cccc1{}", "[nH]1cccc1{}", "s1cccc1{}", "CC(=O){}", "OC(=O)C{}",
)  # fmt: skip
SUBSTITUENTS = (
    "C", "F", "Cl", "Br", "O", "N", "OC", "CO", "C=O", "C(=O)O", "C(=O)C", "C(=O)N", "C(=O)OC", "OC(=O)C", "NC(=O)C", "C#N",
    "N(C)C", "[N+](=O)[O-]", "S", "SC", "S(=O)(=O)C", "C(F)(F)F",
)  # fmt: skip
SMILES = (
    "[H][H] O N C F Cl Br S P [SiH4] C#C C=C CC O=C=O [C-]#[O+] N#N C#N OO NN NO C=O CO O=CO CN CS CF CCl CBr FC(F)F ClC(Cl)Cl "
    "O=O=O O=S=O O=S(=O)=O OS(=O)(=O)O OP(=O)(O)O O[N+](=O)[O-] ON=O [N-]=[N+]=O S=C=S O=C=S CSC CSSC CS(C)=O CS(C)(=O)=O CP(C)C "
    "CP(C)(C)=O COP(=O)(OC)OC C[Si](C)(C)C C[SiH3] CO[SiH3] O[Si](O)(O)O OB(O)O CB(C)C OB(O)c1ccccc1 FB(F)F N#CC#N CN=[N+]=[N-] "
    "CCC CCCC CC(C)C CCCCC CC(C)(C)C CCCCCC CCCCCCCC C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C=CC C=CC=C CC=CC C=C=C CC#CC C1=CCCC1 "
    "C1=CCCCC1 C1=CC=CC1 c1ccccc1 c1ccc2ccccc2c1 c1ccc(-c2ccccc2)cc1 c1ccncc1 c1cnccn1 c1ncncn1 c1ccoc1 c1ccsc1 c1cc[nH]c1 "
    "c1c[nH]cn1 c1cn[nH]c1 c1cocn1 c1cscn1 c1ccc2[nH]ccc2c1 c1ccc2ncccc2c1 c1ncc2[nH]cnc2n1 C1COCCO1 C1CCOC1 C1CCNC1 C1CCNCC1 "
    "C1COCCN1 C1CO1 C1CN1 C1CS1 C1CCSC1 COC CCOCC COCCOC C1OCOCO1 CC(C)O CC(C)(C)O OCCO OCC(O)CO OCC=O CC=O CCC=O C=CC=O CC(C)=O "
    "CCC(C)=O CC(=O)C(C)=O CC(=O)CC(C)=O O=C1CCCCC1 O=C1C=CC(=O)C=C1 OC(=O)C(=O)O OC(=O)CC(=O)O OC(=O)CCC(=O)O OC(=O)C=CC(=O)O "
    "CC(=O)OC(C)=O COC(=O)OC O=C1OCCO1 CC(=O)OCC CCOC=O O=C1CCCO1 NC=O CNC=O CC(=O)NC CN(C)C=O NC(N)=O NC(=O)C(N)=O O=C1CCCN1 "
    "CC(=O)NC(C)C(=O)NC NCC(=O)O CC(N)C(=O)O OCC(N)C(=O)O SCC(N)C(=O)O CC(C)C(N)C(=O)O NC(Cc1ccccc1)C(=O)O OC(=O)C1CCCN1 "
    "NCC(=O)NCC(=O)O Cc1c[nH]c(=O)[nH]c1=O O=c1cc[nH]c(=O)[nH]1 Nc1cc[nH]c(=O)n1 Nc1ncnc2[nH]cnc12 O=c1[nH]cnc2[nH]cnc12 "
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C OCC1OC(O)C(O)C(O)C1O OCC(O)C(O)C(O)C=O CNC CN(C)C CCN NCCN NCCO CC#N C=CC#N CC(C)=NO CN=C=O CN=C=S "
    "CNN CC=NN c1ccc(N=Nc2ccccc2)cc1 CON=O CO[N+](=O)[O-] Oc1ccccc1O Oc1ccccc1C(=O)O Oc1ccccc1C=O COc1ccccc1C(=O)O "
    "Cc1ccc(C(=O)OC)cc1 O=C(O)c1ccccc1C(=O)O O=C1OC(=O)c2ccccc12 CC(=O)Nc1ccc(O)cc1 O=C(c1ccccc1)c1ccccc1 COCc1ccccc1 "
    "O=Cc1ccco1 Cc1ccc(C)o1 CC(=O)c1cccnc1 NC(=O)c1cccnc1 Oc1ccccn1 O=c1cccc[nH]1 COc1ccccn1 Nc1ccccn1 CC(Cl)=O ClC=C(Cl)Cl ClCCl "
    "BrCCBr FC=C FC(F)=C(F)F Clc1ccccc1Cl Fc1ccc(F)cc1 O=C(Cl)Cl FC(F)(F)C(=O)O CS(N)(=O)=O NS(=O)(=O)c1ccccc1 CSC=C SC=O CC(S)=O "
    "CC(N)=S NC(N)=S SSSS S1SSSSSSS1 P12P3P1P23 C=P CPC CP(=O)(O)O ClP(Cl)Cl ClS(Cl)(=O)=O Cl[Si](Cl)(Cl)Cl"
).split()  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One trajectory: how its first structure is made, at which temperature (K), and how many frames after how many steps.

    ``family``: what is held back together.
    """

    family: str
    start: Callable[[np.random.Generator], Atoms]
    temperature: float
    frames: int
    settle: int = 60
    every: int = 25
    seed: int = 0


@dataclass(frozen=True)
class Molecule:
    """A conformer of a molecule, by distance geometry."""

    smiles: str

    def __call__(self, rng: np.random.Generator) -> Atoms:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import AllChem

        RDLogger.DisableLog("rdApp.*")
        molecule = Chem.AddHs(Chem.MolFromSmiles(self.smiles))
        if AllChem.EmbedMolecule(molecule, randomSeed=int(rng.integers(1 << 30))) != 0:
            raise ValueError(f"no conformer of {self.smiles}")
        return Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())


@dataclass(frozen=True)
class Cluster:
    """Several molecules, turned at random, each as near to the others as ``GAP`` allows."""

    smiles: tuple[str, ...]
    GAP = 2.2  # Å between atoms of two molecules, at least

    def __call__(self, rng: np.random.Generator) -> Atoms:
        cluster = Atoms()
        for smiles in self.smiles:
            one = Molecule(smiles)(rng)
            one.positions = Rotation.random(random_state=rng).apply(one.positions - one.positions.mean(0))
            cluster += self._beside(cluster, one, rng)
        return cluster

    def _beside(self, cluster: Atoms, one: Atoms, rng: np.random.Generator) -> Atoms:
        if not len(cluster):
            return one
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        for distance in np.arange(0.0, 40.0, 0.2):
            moved = one.positions + cluster.positions.mean(0) + distance * direction
            if np.linalg.norm(cluster.positions[:, None] - moved, axis=2).min() > self.GAP:
                break
        one.positions = moved
        return one


@dataclass(frozen=True)
class Water:
    """So many molecules on a grid of the liquid's density, turned at random; ``periodic`` or a cluster."""

    count: int
    periodic: bool

    def __call__(self, rng: np.random.Generator) -> Atoms:
        length, per_side = (self.count * 29.9) ** (1 / 3), int(np.ceil(self.count ** (1 / 3)))
        places = rng.permutation(list(np.ndindex(per_side, per_side, per_side)))[: self.count] * length / per_side
        atoms, one = Atoms(cell=[length] * 3, pbc=True) if self.periodic else Atoms(), molecule("H2O")
        for place in places:
            turned = one.copy()
            turned.positions = place + Rotation.random(random_state=rng).apply(one.positions - one.positions.mean(0))
            atoms += turned
        return atoms


def molecules() -> Iterator[Job]:
    """Two temperatures for every molecule."""
    for smiles in all_smiles():
        for temperature in TEMPERATURES:
            yield Job(f"molecule {smiles}", Molecule(smiles), temperature, 5, settle=50, every=20)


def all_smiles() -> list[str]:
    """Those that exist, without those of the formula ``WITHOUT``, each once."""
    from rdkit import Chem, RDLogger
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    RDLogger.DisableLog("rdApp.*")
    written = [*SMILES, *(core.format(substituent) for core, substituent in product(CORES, SUBSTITUENTS))]
    read = [
        found for found in map(Chem.MolFromSmiles, written) if found is not None and CalcMolFormula(found) != WITHOUT
    ]
    return list(dict.fromkeys(map(Chem.MolToSmiles, read)))


def clusters(rng: np.random.Generator, count: int = 160) -> Iterator[Job]:
    """Two to five molecules of the smaller kind, water among them every other time."""
    small = [smiles for smiles in all_smiles() if sum(letter.isalpha() for letter in smiles) <= 6]
    for place in range(count):
        chosen = [str(smiles) for smiles in rng.choice(small, int(rng.integers(2, 6)))]
        if place % 2:
            chosen[1:] = ["O"] * len(chosen[1:])
        yield Job("+".join(sorted(chosen)), Cluster(tuple(chosen)), float(rng.choice([300, 600])), 4, settle=80)


def water() -> Iterator[Job]:
    """Clusters of 2 to 20 molecules, and boxes of 16."""
    for size in (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20):
        for temperature in (300, 500):
            yield Job(f"water-{size}", Water(size, periodic=False), temperature, 12, settle=150, every=30)
    for run in range(6):
        yield Job(f"water-box-{run}", Water(16, periodic=True), (300, 350, 500)[run % 3], 12, settle=200, every=25)


def run(job: Job) -> list[Atoms]:
    """The frames of a trajectory; shorter where the method does not converge or a structure comes apart."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(job.seed)
    frames: list[Atoms] = []
    try:
        atoms = job.start(rng)
        atoms.set_masses([HYDROGEN if symbol == "H" else None for symbol in atoms.symbols])
        atoms.calc = TBLite(method=METHOD, verbosity=0)
        thermalize_momenta(atoms, temperature_K=job.temperature, rng=rng)
        dynamics = Langevin(
            atoms, TIMESTEP * units.fs, temperature_K=job.temperature, friction=FRICTION / units.fs, rng=rng, fixcm=False
        )  # fmt: skip
        dynamics.run(job.settle)
        for _ in range(job.frames):
            dynamics.run(job.every)
            frames.append(_frame(atoms, job.family))
            if np.abs(atoms.get_forces()).max() > MAX_FORCE:
                return frames[:-1]
    except (ValueError, RuntimeError, CalculationFailed) as error:
        print(f"{job.family} at {job.temperature:g} K: {error} after {len(frames)} frames", flush=True)
    return frames


def _frame(atoms: Atoms, family: str) -> Atoms:
    frame = Atoms(atoms.symbols, atoms.positions.round(4), cell=atoms.cell, pbc=atoms.pbc)
    frame.info["config_type"] = family
    frame.calc = SinglePointCalculator(
        frame, energy=round(atoms.get_potential_energy(), 5), forces=atoms.get_forces().round(4)
    )
    return frame


def main() -> None:
    """Write the files that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker, which imports tblite after this
    files = {"water": water(), "clusters": clusters(np.random.default_rng(options.seed)), "molecules": molecules()}
    for name, jobs in files.items():
        path, start = HERE / f"{name}.xyz.gz", time.monotonic()
        if path.exists():
            continue
        seeded = [replace(job, seed=options.seed + 1000 * place) for place, job in enumerate(jobs)]
        with ProcessPoolExecutor(options.workers) as pool:
            frames = [frame for found in pool.map(run, seeded) for frame in found]
        with gzip.open(path, "wt", compresslevel=9) as file:
            write(file, frames, format="extxyz")
        print(f"{name}: {len(frames)} frames of {len(seeded)} runs in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
