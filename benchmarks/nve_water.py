"""100 ps of NVE water at 300 K with a trained model: does the total energy drift?

    python benchmarks/nve_water.py run --name smooth --model runs/water/…/model.dpa1
    python benchmarks/nve_water.py run --name deepmd-default --model model.ckpt.pt    # a DeePMD-kit model, for contrast
    python benchmarks/nve_water.py table                                              # what has finished

Eight molecules at 1 g/cm³ in a cubic box of 6.2 Å (smaller than twice the cutoff, which neither program minds): packed
at random, relaxed, 5 ps of Langevin dynamics at 300 K, then velocity Verlet. A run that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from common import machine, save, table

MOLECULES, BOX, SEED = 8, 6.207, 3
TEMPERATURE, EQUILIBRATION_PS = 300.0, 5.0
EVERY_FS = 20.0  # energies are stored this often
CHUNK_PS = 2.0  # and the state this often


def packed():
    """Molecules on a 2 × 2 × 2 grid in random orientation."""
    from ase import Atoms
    from ase.build import molecule

    rng = np.random.default_rng(SEED)
    atoms = Atoms(cell=[BOX] * 3, pbc=True)
    for cell in np.ndindex(2, 2, 2):
        water = molecule("H2O")
        phi, psi = rng.uniform(0, 360, 2)
        water.euler_rotate(phi, np.degrees(np.arccos(rng.uniform(-1, 1))), psi, center=(0, 0, 0))
        water.translate((np.array(cell) + 0.5) * BOX / 2 - water.positions[0])
        atoms += water
    return atoms


def equilibrated(calculator, step_fs: float):
    """Relaxed, then ``EQUILIBRATION_PS`` of Langevin dynamics; momentum removed and temperature set exactly."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, force_temperature
    from ase.optimize import FIRE

    atoms = packed()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=0.3, steps=200)
    rng = np.random.default_rng(SEED)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(atoms, step_fs * units.fs, temperature_K=TEMPERATURE, friction=0.02 / units.fs, rng=rng)
    dynamics.run(int(EQUILIBRATION_PS * 1000 / step_fs))
    Stationary(atoms)
    force_temperature(atoms, TEMPERATURE)
    return atoms


def run(args: argparse.Namespace) -> None:
    import torch
    from ase.io import read, write
    from ase.md.verlet import VelocityVerlet
    from ase.units import fs

    import dpa1

    torch.set_num_threads(1)
    folder = args.work / args.name
    folder.mkdir(parents=True, exist_ok=True)
    result, state, series = folder / "result.json", folder / "state.traj", folder / "energies.csv"
    if result.exists():
        print(f"{args.name}: done before")
        return
    calculator = dpa1.load(str(args.model)).calculator(dtype=args.dtype)
    if state.exists():
        atoms = read(state)
        atoms.calc = calculator
    else:
        atoms = equilibrated(calculator, args.step_fs)
        series.write_text("time_ps,total_eV,kinetic_eV\n")
        record(series, 0.0, atoms)
        write(state, atoms)
    done = float(series.read_text().split("\n")[-2].split(",")[0])
    every = max(1, round(EVERY_FS / args.step_fs))
    started, first = time.process_time(), done
    while done < args.length_ps - 1e-9:
        dynamics = VelocityVerlet(atoms, args.step_fs * fs)
        rows: list[str] = []
        for _ in range(round(CHUNK_PS * 1000 / args.step_fs / every)):
            dynamics.run(every)
            done += every * args.step_fs / 1000
            rows.append(line(done, atoms))
            if not np.isfinite(atoms.get_kinetic_energy()) or atoms.get_kinetic_energy() > 50:
                raise SystemExit(f"{args.name}: the atoms flew apart after {done:.2f} ps")
        with series.open("a") as stream:
            stream.writelines(rows)
        write(state, atoms)
    values = summary(series)
    values.update(name=args.name, model=args.label or args.name, step_fs=args.step_fs, atoms=len(atoms), dtype=args.dtype,
                  cpu_ms_per_step=1e3 * (time.process_time() - started) * args.step_fs / (1e3 * max(done - first, 1e-9)))  # fmt: skip
    save(values, result)
    print(json.dumps(values))


def line(time_ps: float, atoms) -> str:
    kinetic = atoms.get_kinetic_energy()
    return f"{time_ps:.4f},{kinetic + atoms.get_potential_energy():.7f},{kinetic:.6f}\n"


def record(series: Path, time_ps: float, atoms) -> None:
    with series.open("a") as stream:
        stream.write(line(time_ps, atoms))


def summary(series: Path) -> dict[str, float]:
    """Drift over the run from a straight line through the total energy, scatter about it, mean temperature."""
    from ase.units import kB

    time_ps, total, kinetic = np.loadtxt(series, delimiter=",", skiprows=1, unpack=True)
    n = 3 * MOLECULES
    slope, offset = np.polyfit(time_ps, total, 1)
    tenth = max(1, len(total) // 10)
    return {
        "length_ps": float(time_ps[-1]),
        "drift_meV_atom": float(1e3 * slope * time_ps[-1] / n),
        "last_minus_first_tenth_meV_atom": float(1e3 * (total[-tenth:].mean() - total[:tenth].mean()) / n),
        "scatter_meV_atom": float(1e3 * (total - slope * time_ps - offset).std() / n),
        "temperature_K": float(2 * kinetic.mean() / (3 * n - 3) / kB),
    }


def write_page(args: argparse.Namespace) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [json.loads(p.read_text()) for p in sorted(args.work.glob("*/result.json"))]
    figure = Figure(figsize=(8, 2.4 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, r in zip(figure.subplots(len(results), 1, squeeze=False)[:, 0], results, strict=True):
        time_ps, total, _ = np.loadtxt(args.work / r["name"] / "energies.csv", delimiter=",", skiprows=1, unpack=True)
        axis.plot(time_ps, 1e3 * (total - total[: max(1, len(total) // 100)].mean()) / r["atoms"], lw=0.4)
        axis.axhspan(-0.1, 0.1, color="0.88", zorder=0)
        axis.set_title(
            f"{r['model']}: drift {r['drift_meV_atom']:+.3f} meV/atom in {r['length_ps']:.0f} ps", fontsize=9
        )
        axis.set_ylabel("E − E₀ (meV/atom)", fontsize=8)
        axis.set_xlabel("time (ps)", fontsize=8)
        raw = args.output / "raw" / f"nve_{r['name']}.csv"
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_text("".join((args.work / r["name"] / "energies.csv").read_text().splitlines(keepends=True)[::5]))
    figure.savefig(args.output / "nve.png", dpi=110)
    save({"machine": machine(), "results": results}, args.output / "raw/nve.json")
    header = ["model", "time step (fs)", "length (ps)", "drift (meV/atom)", "last − first tenth (meV/atom)",
              "scatter about the line (meV/atom)", "mean T (K)", "CPU ms/step"]  # fmt: skip
    rows = [
        [
            r["model"], r["step_fs"], f"{r['length_ps']:.0f}", f"{r['drift_meV_atom']:+.4f}",
            f"{r['last_minus_first_tenth_meV_atom']:+.4f}", f"{r['scatter_meV_atom']:.4f}", f"{r['temperature_K']:.0f}",
            f"{r['cpu_ms_per_step']:.1f}",
        ]
        for r in results
    ]  # fmt: skip
    (args.output / "nve.md").write_text(
        "# NVE water at 300 K\n\n"
        "Eight water molecules (24 atoms) at 1 g/cm³, periodic, 5 ps of Langevin dynamics at 300 K with the same model, "
        "then velocity Verlet from momenta scaled to 300 K at that moment. Drift is the slope of a straight line through the total energy times the length of the "
        "run; the bound is 0.1 meV/atom over 100 ps. Networks in the precision the model was trained in (float32), "
        "energies summed in float64. A run shorter than 100 ps was stopped because it had heated far beyond 300 K.\n\n"
        + table(header, rows)
        + "\n![Total energy against time](nve.png)\n\nThe grey band is ±0.1 meV/atom.\n\n"
        f"Command: see the head of `benchmarks/nve_water.py`; seed {SEED}. {machine()}. Raw: [raw/nve.json](raw/nve.json), "
        "`raw/nve_*.csv` (every fifth stored energy).\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["run", "table"])
    parser.add_argument("--name", default="smooth", help="folder of the run")
    parser.add_argument("--label", default="", help="what the table calls the model")
    parser.add_argument("--model", type=Path, help="trained potential: .dpa1, or a DeePMD-kit file")
    parser.add_argument("--work", type=Path, default=Path("runs/nve"), help="where runs are kept")
    parser.add_argument("--step-fs", type=float, default=1.0)
    parser.add_argument("--length-ps", type=float, default=100.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], help="the model's own when not given")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    if args.task == "table":
        write_page(args)
    elif args.model is None:
        parser.error("run needs --model")
    else:
        run(args)


if __name__ == "__main__":
    main()
