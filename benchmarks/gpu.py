"""Speed and memory on one GPU: ``python benchmarks/gpu.py`` measures everything in a few minutes and writes docs/results/gpu.md.

The fast paths are first compared with the reference on this GPU, as on every first use; their errors are in the table.
With ``--deepmd-python`` (of an environment with deepmd-kit 3.2) a training step is measured beside DeePMD-kit's.
Without a GPU it says so and ends with exit code 2. ``--page`` measures nothing and writes the page from the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_cases
from speed_processes import FailedError, Worker
from speed_setup import logged

EDGES = (7, 15, 32, 69)  # molecules along an edge of the cube: 1,029 to 985,527 atoms
STEP_EDGES = (4, 5)  # 192 and 375 atoms
TRAINING = "water-192"
VARIANTS = {"2 layers": (2, False), "2 layers, tabulated": (2, True), "no attention, tabulated": (0, True)}
REPEATS, STEPS = 5, 50
UNKNOWN = "not yet measured"
AIMS = {"2 layers": 2.0, "no attention, tabulated": 0.3}  # µs/atom from 10⁵ atoms on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--edges", type=int, nargs="+", default=EDGES, help="molecules along the edge of each cube")
    parser.add_argument("--deepmd-python", type=Path, help="python of an environment with deepmd-kit 3.2")
    parser.add_argument("--output", type=Path, default=Path("docs/results/raw/gpu.json"), help="results; page beside")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.page and args.output.exists() else {}
    if not args.page:
        import torch

        if args.device.startswith("cuda") and not torch.cuda.is_available():
            print("no GPU that torch can use is on this machine: nothing was measured", file=sys.stderr)
            raise SystemExit(2)
        with tempfile.TemporaryDirectory() as folder:
            results = measure(args, Path(folder))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    page = args.output.parent.parent / "gpu.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(write_page(results, args.edges))
    print(page)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures; one that fails holds the reason."""
    import torch
    from speed_worker import Session

    from dpa1.kernels import dispatch

    on_gpu = args.device.startswith("cuda")
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else args.device,
        "torch": torch.__version__,
        "paths": dispatch.report(args.device),
        "inference": {},
        "steps": {},
        "training": {},
    }
    session = Session("dpa1", args.device, torch.get_num_threads())
    for edge in args.edges:
        path, facts = speed_cases.structure(f"water-{3 * edge**3}", folder)
        for name, (layers, tabulated) in VARIANTS.items():
            model = weights(folder, layers, facts["neighbors"])

            def evaluated(model: Path = model, path: Path = path, tabulated: bool = tabulated) -> dict[str, Any]:
                session.load(str(model), str(path), tabulated)
                session.inference()  # compiles kernels and builds tables
                whole = repeated(session.inference)
                return {**whole, "neighbors_s": repeated(session.neighbors)["seconds"]}

            results["inference"][f"{name}/{facts['atoms']}"] = {**attempt(evaluated), **facts}
    for edge in STEP_EDGES:
        path, facts = speed_cases.structure(f"water-{3 * edge**3}", folder)
        for name, (layers, tabulated) in VARIANTS.items():
            model = weights(folder, layers, facts["neighbors"])
            results["steps"][f"{name}/{facts['atoms']}"] = attempt(
                lambda model=model, path=path, tabulated=tabulated: steps(model, path, tabulated, args.device)
            )
    path, facts = speed_cases.structure(TRAINING, folder)
    for layers in (2, 0):
        model = weights(folder, layers, facts["neighbors"], convention="deepmd")

        def trained(model: Path = model) -> dict[str, Any]:
            session.load(str(model), str(path))
            for _ in range(3):
                session.training()
            return repeated(session.training)

        results["training"][f"dpa1/{layers}"] = attempt(trained)
        if args.deepmd_python:
            results["training"][f"deepmd-kit/{layers}"] = attempt(
                lambda model=model: theirs(model, path, args.deepmd_python, args.device, folder)
            )
    return results


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


def steps(model: Path, path: Path, tabulated: bool, device: str) -> dict[str, Any]:
    """Time of one step of molecular dynamics as ASE drives it: atoms move a little, forces are read."""
    import time

    import numpy as np
    from ase import Atoms

    from dpa1.model.file import load_model

    data = np.load(path)
    atoms = Atoms(data["numbers"], data["positions"], cell=data["cell"], pbc=True)
    atoms.calc = load_model(model).calculator(device=device, dtype="float32", tabulate=tabulated)
    rng, spent = np.random.default_rng(0), []
    for _ in range(STEPS + 5):
        atoms.positions += rng.normal(scale=0.002, size=atoms.positions.shape)
        begun = time.perf_counter()
        atoms.get_forces()
        spent.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(spent[5:]), "all_seconds": spent[5:]}


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
    where = f"{results['device']}, torch {results['torch']}" if results else UNKNOWN
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
    lines += ["", "## One step of ASE", "", "| atoms | model | ms | aim |", "|---|---|---|---|"]
    for edge in STEP_EDGES:
        for name in VARIANTS:
            case = results.get("steps", {}).get(f"{name}/{3 * edge**3}")
            lines.append(
                f"| {3 * edge**3} | {name} | {figure(case, lambda c: format(1e3 * c['seconds'], '.3g'))} | ≤ 2 |"
            )
    lines += ["", "## One training step, 192 atoms", "",
              "| layers | dpa1, ms | DeePMD-kit, ms | ratio | aim |", "|---|---|---|---|---|"]  # fmt: skip
    for layers in (2, 0):
        ours, other = (results.get("training", {}).get(f"{program}/{layers}") for program in ("dpa1", "deepmd-kit"))
        ratio = UNKNOWN
        if ours and other and "seconds" in ours and "seconds" in other:
            ratio = f"{other['seconds'] / ours['seconds']:.1f}×"
        cells = [figure(case, lambda c: format(1e3 * c["seconds"], ".3g")) for case in (ours, other)]
        lines.append(f"| {layers} | {cells[0]} | {cells[1]} | {ratio} | ≥ 10× |")
    lines += ["", "## Fast paths against the reference", "",
              "Largest relative difference of values, first and second derivatives.", "",
              "| operation | path | precision | difference |", "|---|---|---|---|"]  # fmt: skip
    for path in results.get("paths", []):
        verdict = "" if path["ok"] else " (not used)"
        lines.append(f"| {path['operation']} | {path['path']} | {path['precision']} | {path['error']:.1e}{verdict} |")
    if not results:
        lines.append(f"| all | Triton kernels | float32, float64 | {UNKNOWN} on a GPU |")
    return "\n".join(lines) + "\n"


def figure(case: dict[str, Any] | None, text: Callable[[dict[str, Any]], str]) -> str:
    if case is None:
        return UNKNOWN
    return case["failed"] if "failed" in case else text(case)


if __name__ == "__main__":
    main()
