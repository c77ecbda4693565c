"""What the speed benchmark measures: structures, weights, and the arithmetic that a figure is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

CUTOFF, SEL = 6.0, 120
WATER_SPACING = 3.07  # Å between molecules: gives the 89 neighbours within 6 Å of liquid water
SULFIDE = Path(__file__).parent / "data" / "li4p2s7.xyz"
MFLOP = {"forward": 29.0, "inference": 65.0, "training": 195.0}  # per atom with 90 neighbours and 2 layers
WIDTHS, FITTING, TYPES, AXIS, ATTENTION = (25, 50, 100), (240, 240, 240), 8, 16, 128
SYSTEMS = ("water-192", "water-1536", "water-12288", "sulfide-52")


@dataclass(frozen=True)
class Group:
    """One structure and one set of weights in one precision."""

    system: str
    layers: int
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.system}/{self.layers}-layers/{self.dtype}"

    @property
    def elements(self) -> tuple[str, ...]:
        return ("H", "O") if self.system.startswith("water") else ("Li", "P", "S")


def groups(quick: bool) -> list[Group]:
    """Most important first, so that an interrupted benchmark has what matters."""
    if quick:
        return [Group("water-192", layers, "float32") for layers in (2, 0)]
    order = [("water-192", 2), ("water-192", 0), ("water-1536", 2), ("water-1536", 0), ("sulfide-52", 2),
             ("sulfide-52", 0), ("water-12288", 0), ("water-12288", 2)]  # fmt: skip
    return [Group(system, layers, dtype) for system, layers in order for dtype in ("float32", "float64")]


def arithmetic(neighbors: float, layers: int, task: str) -> float:
    """FLOP per atom of the matrix products, scaled to ``MFLOP`` at 90 neighbours and 2 layers.

    Linear in the neighbours: embedding, projections, contraction, fitting; quadratic: attention scores and weighted sums.
    A product with a weight matrix costs as much again for the force, and six times in a training step (forward, force,
    and both gradients of each); one of two activations three and nine times.
    """

    def parts(n: float, count: int) -> float:
        a, b, c = WIDTHS
        linear = 2 * n * ((1 + 2 * TYPES) * a + a * b + b * c + 4 * c) + 2 * c * 4 * AXIS
        linear += count * 2 * n * 4 * c * ATTENTION
        widths = (c * AXIS + TYPES, *FITTING, 1)
        linear += sum(2 * m * k for m, k in pairwise(widths))
        quadratic = count * 2 * 2 * n * n * ATTENTION
        factors = {"forward": (1, 1), "inference": (2, 3), "training": (6, 9)}[task]
        return factors[0] * linear + factors[1] * quadratic

    return MFLOP[task] * 1e6 * parts(neighbors, layers) / parts(90, 2)


def matmul_shapes(atoms: int = 192, neighbors: int = 90) -> dict[str, list[int]]:
    """The products of one forward pass as (batch, m, k, n)."""
    rows, (_, b, c) = atoms * neighbors, WIDTHS
    return {
        "embedding": [1, rows, b, c],
        "queries, keys, values": [1, rows, c, 3 * ATTENTION],
        "scores": [atoms, neighbors, ATTENTION, neighbors],
        "weighted values": [atoms, neighbors, neighbors, ATTENTION],
        "attention output": [1, rows, ATTENTION, c],
        "fitting": [1, atoms, c * AXIS + TYPES, FITTING[0]],
    }


def water(molecules_per_edge: int) -> dict[str, np.ndarray]:
    """Rigid water molecules, randomly turned and slightly displaced from a simple cubic lattice; random labels."""
    rng = np.random.default_rng(0)
    edge = molecules_per_edge
    sites = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 1, 3) * WATER_SPACING
    half = np.deg2rad(104.52 / 2)
    rigid = 0.9572 * np.array([[0, 0, 0], [np.sin(half), 0, np.cos(half)], [-np.sin(half), 0, np.cos(half)]])
    turn = np.linalg.qr(rng.normal(size=(len(sites), 3, 3)))[0]
    positions = rigid @ turn + sites + rng.uniform(-0.4, 0.4, sites.shape)
    numbers = np.tile([8, 1, 1], len(sites))
    return with_labels(numbers, positions.reshape(-1, 3), np.eye(3) * edge * WATER_SPACING)


def with_labels(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> dict[str, np.ndarray]:
    """The structure with forces of 1 eV/Å drawn at random: a step costs the same whatever the labels are."""
    from ase.data import chemical_symbols

    forces = np.random.default_rng(1).normal(size=positions.shape)
    symbols = np.array([chemical_symbols[z] for z in numbers])
    return {"numbers": numbers, "positions": positions, "cell": cell, "energy": np.float64(0.0), "forces": forces,
            "symbols": symbols}  # fmt: skip


def structure(system: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """The structure as a file both programs read, and its neighbour numbers."""
    from dpa1.frames import make_frame
    from dpa1.neighbors import find_neighbors

    name, _, count = system.partition("-")
    if name == "water":
        data = water(round((int(count) / 3) ** (1 / 3)))
    else:
        from ase.io import read

        atoms = read(SULFIDE)
        data = with_labels(atoms.numbers, atoms.positions, atoms.cell.array)
    path = folder / f"{system}.npz"
    np.savez(path, **data)
    frame = make_frame(data["numbers"], data["positions"], data["cell"], True)
    counts = np.bincount(find_neighbors(frame, CUTOFF).centre, minlength=len(frame))
    return path, {"atoms": len(frame), "neighbors": float(counts.mean()), "most_neighbors": int(counts.max())}


def model(convention: str, elements: tuple[str, ...], layers: int, dtype: str, neighbors: float, path: Path) -> None:
    """Save one potential: the weights of seed 0 in the given precision. ``smooth`` has no ``sel``."""
    import torch

    from dpa1.config.model import ModelConfig
    from dpa1.model.file import save_model
    from dpa1.model.potential import Potential

    own = {"sel": SEL} if convention == "deepmd" else {"mean_neighbors": neighbors}
    torch.manual_seed(0)
    potential = Potential(
        ModelConfig(
            convention=convention, elements=elements, cutoff=CUTOFF, embedding=WIDTHS, axis=AXIS, type_embedding=TYPES,
            attention_layers=layers, attention_width=ATTENTION, fitting=FITTING, **own,
        )
    )  # fmt: skip
    potential.set_precision(dtype)
    potential.config = potential.config.model_copy(update={"precision": dtype})
    save_model(potential, path)


def write_frames(data: Mapping[str, np.ndarray], path: Path, count: int) -> None:
    """Extended XYZ of ``count`` displaced copies of a structure with random labels."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    rng, frames = np.random.default_rng(2), []
    for _ in range(count):
        noise = rng.normal(scale=0.02, size=data["positions"].shape)
        atoms = Atoms(numbers=data["numbers"], positions=data["positions"] + noise, cell=data["cell"], pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=data["forces"])
        frames.append(atoms)
    write(path, frames, format="extxyz")
