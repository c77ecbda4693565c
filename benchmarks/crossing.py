"""One water molecule moves through the cutoff of an oxygen: what jumps in energy, force and force derivative?

    python benchmarks/crossing.py [--model "name=path" ...] [--output docs/results]

Without ``--model`` it scans random weights: the worst case, because nothing has smoothed them. float64 throughout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import DATASETS, machine, save, table

import dpa1
from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.frames import Frame, make_frame
from dpa1.model.potential import Potential

CUTOFF, SEED, MEAN_NEIGHBORS, SEL = 5.0, 7, 52.0, 72
WIDTHS = {"embedding": (10, 20, 40), "axis": 8, "attention_width": 64, "fitting": (64, 64, 64)}
SCALE = (0.19, 0.12)  # typical of water at this cutoff
NEAR = 1e-6  # Å on both sides of the cutoff
STEP = 1e-4  # Å, of the one-sided differences


def random_potential(convention: str, layers: int, smooth_attention: bool = True) -> Potential:
    """Random weights, with the normalisation of water."""
    if convention == "smooth":
        own = {"mean_neighbors": MEAN_NEIGHBORS}
    else:
        own = {"sel": SEL, "smooth_attention": smooth_attention}
    torch.manual_seed(SEED)
    config = ModelConfig(
        convention=convention, elements=("H", "O"), cutoff=CUTOFF, attention_layers=layers, precision="float64", **WIDTHS, **own
    )  # fmt: skip
    potential = Potential(config)
    potential.descriptor.scale.copy_(torch.tensor([SCALE, SCALE]))
    return potential


def droplet(frame: Frame, radius: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, positions) of the whole molecules around one oxygen, that oxygen at the origin as atom 0."""
    box = np.diag(frame.cell)
    oxygens = np.flatnonzero(frame.numbers == 8)
    hydrogens = np.flatnonzero(frame.numbers == 1)
    centre = frame.positions[oxygens[0]]

    def near(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
        d = points - origin
        return d - box * np.round(d / box)

    numbers, positions = [], []
    order = np.argsort(np.linalg.norm(near(frame.positions[oxygens], centre), axis=1))
    for o in oxygens[order]:
        where = near(frame.positions[o], centre)
        if np.linalg.norm(where) > min(radius, box.min() / 2):
            break
        bonds = near(frame.positions[hydrogens], frame.positions[o])
        pair = np.argsort(np.linalg.norm(bonds, axis=1))[:2]
        numbers += [8, 1, 1]
        positions += [where, where + bonds[pair[0]], where + bonds[pair[1]]]
    return np.array(numbers), np.array(positions)


class Scan:
    """The droplet with one molecule moved along the line from atom 0 so that their O–O distance is r."""

    def __init__(self, frame: Frame, cutoff: float) -> None:
        self.numbers, self.positions = droplet(frame)
        oxygens = np.arange(0, len(self.numbers), 3)
        distance = np.linalg.norm(self.positions[oxygens], axis=1)
        self.moved = int(oxygens[np.argmin(np.abs(distance - cutoff) + 10 * (oxygens == 0))])
        self.axis = self.positions[self.moved] / np.linalg.norm(self.positions[self.moved])
        self.start = float(np.linalg.norm(self.positions[self.moved]))

    def __call__(self, potential: Potential, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (eV) and force on the molecule along the line (eV/Å), at every distance."""
        energy, force = [], []
        for r in distances:
            positions = self.positions.copy()
            positions[self.moved : self.moved + 3] += (r - self.start) * self.axis
            batch = make_batch([make_frame(self.numbers, positions)], potential.cutoff)
            out = potential.predict(batch, virial=False)
            energy.append(float(out["energy"][0]))
            force.append(float(out["forces"].numpy()[self.moved : self.moved + 3].sum(0) @ self.axis))
        return np.array(energy), np.array(force)


def jumps(scan: Scan, potential: Potential) -> dict[str, float]:
    """Differences between 1e-6 Å outside and inside the cutoff, the regular slope across that gap taken off."""
    rc = potential.cutoff
    energy, force = scan(potential, np.array([rc - NEAR, rc + NEAR]))
    inner, outer = (one_sided(scan, potential, rc + side * 1e-3 * NEAR, side * STEP) for side in (-1, 1))
    return {
        "energy_jump_eV": abs(energy[1] - energy[0] + NEAR * (force[0] + force[1])),
        "force_jump_eV_A": abs(force[1] - force[0] - NEAR * (inner + outer)),
        "slope_jump_eV_A2": abs(outer - inner),
        "force_size_eV_A": abs(force[0]),
    }


def one_sided(scan: Scan, potential: Potential, r: float, h: float) -> float:
    """dF/dr from one side, third order in h."""
    _, f = scan(potential, r + h * np.arange(4))
    return float(-11 * f[0] + 18 * f[1] - 9 * f[2] + 2 * f[3]) / (6 * h)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATASETS / "water_deepmd_example/test.xyz.gz")
    parser.add_argument("--model", action="append", default=[], help="name=path of a trained model to scan too")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        "random, smooth, 2 layers": random_potential("smooth", 2),
        "random, smooth, 3 layers": random_potential("smooth", 3),
        "random, smooth, 0 layers": random_potential("smooth", 0),
        "random, deepmd, smooth attention, 2 layers": random_potential("deepmd", 2),
        "random, deepmd, its default (not smooth), 2 layers": random_potential("deepmd", 2, smooth_attention=False),
    }
    for entry in args.model:
        name, _, path = entry.partition("=")
        cases[name] = dpa1.load(path).set_precision("float64")
    frame = dpa1.read(str(args.data))[0]
    results, curves = {}, {}
    for name, potential in cases.items():
        scan = Scan(frame, potential.cutoff)
        results[name] = jumps(scan, potential)
        offsets = np.linspace(-0.01, 0.01, 81) + 1e-7
        curves[name] = (offsets, *scan(potential, potential.cutoff + offsets))
        print(name, {k: f"{v:.1e}" for k, v in results[name].items()}, flush=True)
    save({"machine": machine(), "seed": SEED, "jumps": results}, args.output / "raw/crossing.json")
    plot(curves, args.output / "crossing.png")
    write_page(results, args.output / "crossing.md")


def plot(curves: dict[str, tuple[np.ndarray, ...]], path: Path) -> None:
    """One row per case: energy and force against distance from the cutoff, each minus the line through its ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = [n for n in curves if "3 layers" not in n and "0 layers" not in n]
    figure = Figure(figsize=(9, 2.1 * len(wanted)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(wanted), 2, squeeze=False)
    for row, name in zip(axes, wanted, strict=True):
        offsets, energy, force = curves[name]
        color = "tab:blue" if "deepmd" not in name.lower() else "tab:red"
        for axis, values, label in ((row[0], 1e3 * energy, "energy (meV)"), (row[1], 1e3 * force, "force (meV/Å)")):
            # The smooth background on the inner side, continued to the outer one, shows what the crossing adds.
            inside = offsets < 0
            line = np.polynomial.Polynomial.fit(offsets[inside], values[inside], 3)
            axis.plot(1e3 * offsets, values - line(offsets), ".", ms=3, color=color)
            size = max(1e-4, float(np.abs(values - line(offsets)).max()))
            axis.set_ylim(-1.3 * size, 1.3 * size)
            axis.axvline(0, color="0.7", lw=0.8)
            axis.set_ylabel(label, fontsize=8)
            axis.tick_params(labelsize=7)
        row[0].set_title(name, fontsize=9, loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("distance − cutoff (mÅ)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_page(results: dict[str, dict[str, float]], path: Path) -> None:
    rows = [[name, *(f"{value:.1e}" for value in r.values())] for name, r in results.items()]
    header = ["model", "energy jump (eV)", "force jump (eV/Å)", "jump of dF/dr (eV/Å²)", "size of the force (eV/Å)"]
    path.write_text(
        "# An atom crossing the cutoff\n\n"
        f"A water molecule of a droplet (first frame of the water test set) is moved so that its O–O distance to the "
        f"central molecule passes the cutoff. The table gives what changes between {NEAR:g} Å inside and outside, the "
        "regular slope across that gap taken off; the jump of dF/dr compares third-order differences of the force taken from either side (step 0.1 mÅ). "
        "All in float64.\n\n" + table(header, rows) + "\n"
        "![Energy and force around the cutoff](crossing.png)\n\n"
        "Each panel shows energy or force minus a cubic fitted to the inner side; zero on the right means that nothing "
        "happened at the cutoff. Mind the scales.\n\n"
        f'Command: `python benchmarks/crossing.py --model "name=path" …` with the models of [water.md](water.md); seed {SEED}; {machine()}. Raw: [raw/crossing.json](raw/crossing.json).\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
