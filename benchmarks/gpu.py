"""Speed and memory on one GPU: ``python benchmarks/gpu.py`` measures everything in a few minutes and writes docs/results/gpu.md.

The fast paths are first compared with the reference on this GPU, as on every first use; their errors are in the table. With
``--deepmd-python`` (of an environment with deepmd-kit 3.2) or ``--deepmd-wheels`` (brought along to a machine without network
whose torch fits them) a training step is measured beside DeePMD-kit's. What is measured is written at once, so an
interrupted run leaves it, and ``--parts`` adds the rest. ``--dry-run`` goes through all of it on the CPU with tiny structures
and leaves nothing behind; ``--page`` measures nothing and writes the page from the results. Without a GPU it says so and
ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import speed_cases
from speed_processes import FailedError, Worker
from speed_setup import logged

EDGES = (7, 15, 32, 69)  # molecules along an edge of the cube: 1,029 to 985,527 atoms
STEP_EDGES = (4, 5)  # 192 and 375 atoms
TRAINING = ("water-192", "water-1536")
VARIANTS = {
    "2 layers": (2, False), "2 layers, tabulated": (2, True),
    "no attention": (0, False), "no attention, tabulated": (0, True),
}  # fmt: skip
REPEATS, STEPS, WARM = 5, 50, 5
PARTS = ("paths", "precision", "steps", "inference", "training")
COUNTED = 30_000  # atoms up to which neighbours are counted; larger cubes of the same water have as many
UNKNOWN = "not yet measured"
AIMS = {"2 layers": 2.0, "no attention, tabulated": 0.3}  # µs/atom from 10⁵ atoms on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument("--dry-run", action="store_true", help="everything once on the CPU, tiny; the page is printed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the rest stays as it is"
    )
    parser.add_argument("--edges", type=int, nargs="+", default=EDGES, help="molecules along the edge of each cube")
    parser.add_argument("--deepmd-python", type=Path, help="python of an environment with deepmd-kit 3.2")
    parser.add_argument(
        "--deepmd-wheels", type=Path, nargs="+", help="wheels of deepmd-kit and of what else it needs here"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/raw/gpu.json"), help="results; page beside")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.dry_run:
            args.device, args.edges, args.output = "cpu", (2,), Path(folder) / "raw" / "gpu.json"
        kept: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
        if not args.page:
            import torch

            if args.device.startswith("cuda") and not torch.cuda.is_available():
                print("no GPU that torch can use is on this machine: nothing was measured", file=sys.stderr)
                raise SystemExit(2)
            if args.deepmd_wheels:
                args.deepmd_python = bring(args.deepmd_wheels, Path(folder))
            Measurement(args, Path(folder), kept).run()
            kept = json.loads(args.output.read_text())
        page = write(args.output, kept, args.edges)
        print(page.read_text() if args.dry_run else page)


def write(output: Path, results: dict[str, Any], edges: tuple[int, ...]) -> Path:
    page = output.parent.parent / "gpu.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(write_page(results, edges))
    return page


class Measurement:
    """All figures, each written as soon as it is there; one that fails holds the reason."""

    def __init__(self, args: argparse.Namespace, folder: Path, kept: dict[str, Any]) -> None:
        import torch
        from speed_worker import Session

        on_gpu = args.device.startswith("cuda")
        machine = {"device": torch.cuda.get_device_name() if on_gpu else args.device, "torch": torch.__version__}
        if {key: kept.get(key) for key in machine} != machine:
            kept = {}  # of another machine
        self.args, self.folder, self.device = args, folder, args.device
        self.results: dict[str, Any] = {**kept, **machine}
        self.session = Session("dpa1", args.device, torch.get_num_threads())
        self.facts: dict[str, float] = {}

    def run(self) -> None:
        for part in self.args.parts:
            begun = time.perf_counter()
            self.results[part] = [] if part == "paths" else {}
            getattr(self, part)()
            self.results.setdefault("seconds", {})[part] = time.perf_counter() - begun
            self.save()

    def save(self) -> None:
        self.args.output.parent.mkdir(parents=True, exist_ok=True)
        self.args.output.write_text(json.dumps(self.results, indent=1) + "\n")
        write(self.args.output, self.results, self.args.edges)

    def note(
        self, part: str, key: str, facts: dict[str, float], work: Callable[..., dict[str, Any]], *given: Any
    ) -> None:
        """Keep what ``work`` measures with what it is given."""
        self.results[part][key] = {**attempt(lambda: work(*given)), **facts}
        print(part, key, self.results[part][key].get("seconds", self.results[part][key]), file=sys.stderr)
        self.save()

    def structure(self, system: str) -> tuple[Path, dict[str, float]]:
        """As ``speed_cases.structure``, without counting the neighbours of large ones again."""
        count = int(system.rpartition("-")[2])
        path = self.folder / f"{system}.npz"
        if count <= COUNTED or not self.facts:
            path, self.facts = speed_cases.structure(system, self.folder)
        else:
            np.savez(path, **speed_cases.water(round((count / 3) ** (1 / 3))))
        return path, {**self.facts, "atoms": count}

    def paths(self) -> None:
        from dpa1.kernels import dispatch
        from dpa1.simulate import step

        self.results["paths"] = [*dispatch.report(self.device), *step.report(self.device)]

    def precision(self) -> None:
        """Largest difference of a force from the same weights in float64 on the CPU."""
        path, facts = self.structure(f"water-{3 * STEP_EDGES[0] ** 3}")
        for name, (layers, tabulated) in VARIANTS.items():
            model = weights(self.folder, layers, facts["neighbors"])
            self.note("precision", name, {}, precise, model, path, tabulated, self.device)

    def steps(self) -> None:
        for edge in STEP_EDGES:
            path, facts = self.structure(f"water-{3 * edge**3}")
            for name, (layers, tabulated) in VARIANTS.items():
                model = weights(self.folder, layers, facts["neighbors"])
                for fixed in (True, False):
                    key = f"{name}/{facts['atoms']}/{'fixed' if fixed else 'ordinary'}"
                    self.note("steps", key, {}, steps, model, path, tabulated, fixed, self.device)

    def inference(self) -> None:
        for edge in self.args.edges:
            path, facts = self.structure(f"water-{3 * edge**3}")
            for name, (layers, tabulated) in VARIANTS.items():
                model = weights(self.folder, layers, facts["neighbors"])
                self.note("inference", f"{name}/{facts['atoms']}", facts, self.evaluated, model, path, tabulated)

    def evaluated(self, model: Path, path: Path, tabulated: bool) -> dict[str, Any]:
        self.session.load(str(model), str(path), tabulated)
        self.session.inference()  # compiles kernels and builds tables
        whole = repeated(self.session.inference)
        return {**whole, "neighbors_s": repeated(self.session.neighbors)["seconds"]}

    def training(self) -> None:
        for system in TRAINING:
            path, facts = self.structure(system)
            for layers in (2, 0):
                model = weights(self.folder, layers, facts["neighbors"], convention="deepmd")
                key = f"{layers}/{facts['atoms']}"
                self.note("training", f"dpa1/{key}", {}, self.trained, model, path)
                if python := self.args.deepmd_python:
                    self.note(
                        "training", f"deepmd-kit/{key}", {}, theirs, model, path, python, self.device, self.folder
                    )

    def trained(self, model: Path, path: Path) -> dict[str, Any]:
        self.session.load(str(model), str(path))
        for _ in range(3):
            self.session.training()
        return repeated(self.session.training)


def bring(wheels: list[Path], folder: Path) -> Path:
    """The python of a new environment that has these wheels beside all that this one has; nothing is downloaded."""
    python = folder / "deepmd" / "bin" / "python"
    logged([sys.executable, "-m", "venv", "--without-pip", str(folder / "deepmd")], folder / "venv.log")
    (place,) = (folder / "deepmd").glob("lib/python*/site-packages")
    (place / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(place)]
    logged([*install, *(str(wheel) for wheel in wheels)], folder / "pip.log")
    return python


def weights(folder: Path, layers: int, neighbors: float, convention: str = "smooth") -> Path:
    path = folder / f"{convention}-{layers}.dpa1"
    if not path.exists():
        speed_cases.model(convention, ("H", "O"), layers, "float32", neighbors, path)
    return path


def repeated(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Median time and largest peak memory of some calls."""
    answers = [work() for _ in range(REPEATS)]
    return {
        "seconds": statistics.median(answer["seconds"] for answer in answers),
        "all_seconds": [answer["seconds"] for answer in answers],
        "peak": max(answer["peak"] for answer in answers),
    }


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A figure that cannot be had leaves its reason, and the rest goes on."""
    try:
        return work()
    except (RuntimeError, MemoryError, FailedError) as error:
        return {"failed": str(error).strip().splitlines()[-1][:200]}


def atoms_of(path: Path) -> Any:
    from ase import Atoms

    data = np.load(path)
    return Atoms(data["numbers"], data["positions"], cell=data["cell"], pbc=True)


def precise(model: Path, path: Path, tabulated: bool, device: str) -> dict[str, Any]:
    from dpa1.model.file import load_model

    atoms, potential = atoms_of(path), load_model(model)
    exact = potential.calculator(device="cpu", dtype="float64").get_forces(atoms)
    found = potential.calculator(device=device, dtype="float32", tabulate=tabulated).get_forces(atoms)
    return {"error": float(np.abs(found - exact).max()), "largest": float(np.abs(exact).max())}


def steps(model: Path, path: Path, tabulated: bool, fixed: bool, device: str) -> dict[str, Any]:
    """Time of one step of molecular dynamics as ASE drives it: atoms move a little, forces are read."""
    from dpa1.model.file import load_model

    atoms = atoms_of(path)
    options = {"tabulate": tabulated, "fixed_shapes": fixed}
    calculator = atoms.calc = load_model(model).calculator(device=device, dtype="float32", **options)
    rng, spent = np.random.default_rng(0), []
    for _ in range(STEPS + WARM):
        atoms.positions += rng.normal(scale=0.002, size=atoms.positions.shape)
        begun = time.perf_counter()
        atoms.get_forces()
        spent.append(time.perf_counter() - begun)
    found = {"seconds": statistics.median(spent[WARM:]), "all_seconds": spent[WARM:]}
    if calculator.fixed_step is not None:
        step = calculator.fixed_step
        found |= {"recordings": step.recordings, "error": step.error, "refusal": step.refusal}
    return {**found, "first_s": spent[0], "searches": calculator.neighbors.builds}


def theirs(model: Path, path: Path, python: Path, device: str, folder: Path) -> dict[str, Any]:
    """DeePMD-kit's training step with the same weights."""
    from dpa1.interop.convert import convert

    plain, frozen = model.with_suffix(".dp"), model.with_suffix(".pth")
    convert(model, plain, overwrite=True)
    logged([str(python), "-m", "deepmd", "convert-backend", str(plain), str(frozen)], folder / "convert.log")
    with Worker(python, "deepmd-kit", device, 4, folder / "deepmd.log") as worker:
        worker.ask("load", model=str(frozen), structure=str(path))
        for _ in range(3):
            worker.ask("training")
        return repeated(lambda: worker.ask("training"))


def write_page(results: dict[str, Any], edges: tuple[int, ...] = EDGES) -> str:
    """Markdown; what was not measured is called so."""
    sizes = sorted({int(key.rsplit("/", 1)[1]) for key in results.get("inference", {})}) or [3 * e**3 for e in edges]
    where = f"{results['device']}, torch {results['torch']}" if "device" in results else UNKNOWN
    lines = [
        "# Speed on a GPU", "",
        "`python benchmarks/gpu.py` measures this table on a machine with a GPU and writes it, raw output in "
        "`docs/results/raw/gpu.json`.", "",
        f"GPU: {where}. Water, cutoff 6 Å, 89 neighbors, embedding 25-50-100, attention width 128, fitting 240³, float32.",
        "", "## Energy, forces and virial", "",
        "| atoms | model | µs/atom | aim | memory, kB/atom | neighbor list, share |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for atoms in sizes:
        for name in VARIANTS:
            case = results.get("inference", {}).get(f"{name}/{atoms}")
            aim = f"≤ {AIMS[name]:g}" if name in AIMS and atoms >= 90_000 else ""
            speed = figure(case, lambda c, n=atoms: f"{1e6 * c['seconds'] / n:.3g}")
            memory = figure(case, lambda c, n=atoms: f"{1e-3 * c['peak'] / n:.3g}")
            share = figure(case, lambda c: f"{c['neighbors_s'] / c['seconds']:.0%}")
            lines.append(f"| {atoms:,} | {name} | {speed} | {aim} | {memory} | {share} |")
    lines += ["", "## One step of ASE", "",
              "Median over steps that move atoms a little, new neighbor lists included. Graph: recorded once and replayed "
              "(`calculator(fixed_shapes=None)`, the default on a GPU).", "",
              "| atoms | model | graph, ms | aim | without, ms | difference of the two |", "|---|---|---|---|---|---|"]  # fmt: skip
    for edge in STEP_EDGES:
        for name in VARIANTS:
            both = [results.get("steps", {}).get(f"{name}/{3 * edge**3}/{how}") for how in ("fixed", "ordinary")]
            fixed, plain = (figure(case, lambda c: format(1e3 * c["seconds"], ".3g")) for case in both)
            if both[0] and both[0].get("refusal"):
                fixed = f"{fixed} (no graph: {both[0]['refusal']})"
            agree = figure(both[0], lambda c: UNKNOWN if c.get("error") is None else f"{c['error']:.1e}")
            lines.append(f"| {3 * edge**3} | {name} | {fixed} | ≤ 2 | {plain} | {agree} |")
    lines += ["", "## One training step", "",
              "| atoms | layers | dpa1, ms | DeePMD-kit, ms | ratio | aim |", "|---|---|---|---|---|---|"]  # fmt: skip
    known = {int(key.rsplit("/", 1)[1]) for key in results.get("training", {})}
    for atoms in sorted(known or {int(system.rpartition("-")[2]) for system in TRAINING}):
        for layers in (2, 0):
            cases = [
                results.get("training", {}).get(f"{program}/{layers}/{atoms}") for program in ("dpa1", "deepmd-kit")
            ]
            ratio = UNKNOWN
            if all(case and "seconds" in case for case in cases):
                ratio = f"{cases[1]['seconds'] / cases[0]['seconds']:.1f}×"
            cells = [figure(case, lambda c: format(1e3 * c["seconds"], ".3g")) for case in cases]
            lines.append(f"| {atoms:,} | {layers} | {cells[0]} | {cells[1]} | {ratio} | ≥ 10× |")
    lines += ["", "## Forces in float32", "",
              "Largest difference from the same weights in float64 on the CPU, on the smallest structure above.", "",
              "| model | difference, eV/Å | largest force, eV/Å |", "|---|---|---|"]  # fmt: skip
    for name in VARIANTS:
        case = results.get("precision", {}).get(name)
        cells = [figure(case, lambda c, k=key: f"{c[k]:.1e}") for key in ("error", "largest")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines += ["", "## Fast paths against the reference", "",
              "Largest relative difference of values, first and second derivatives.", "",
              "| operation | path | precision | difference |", "|---|---|---|---|"]  # fmt: skip
    for path in results.get("paths", []):
        verdict = "" if path["ok"] else " (not used)"
        lines.append(f"| {path['operation']} | {path['path']} | {path['precision']} | {path['error']:.1e}{verdict} |")
    if not results.get("paths"):
        lines.append(f"| all | Triton kernels | float32, float64 | {UNKNOWN} on a GPU |")
    return "\n".join(lines) + "\n"


def figure(case: dict[str, Any] | None, text: Callable[[dict[str, Any]], str]) -> str:
    if case is None:
        return UNKNOWN
    return case["failed"] if "failed" in case else text(case)


if __name__ == "__main__":
    main()
