"""What the benchmark scripts share: one-thread runs in their own folder, errors on a test file, tables."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DATASETS = Path("datasets")  # folder of data sets, laid out as in their sources; ``--data`` names another


def run_logged(command: Sequence[str], folder: Path, log: str) -> dict[str, float]:
    """Run in ``folder`` with one thread, output appended to ``log``; wall and CPU seconds it took."""
    folder.mkdir(parents=True, exist_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / log).open("a") as stream:
        stream.write("$ " + " ".join(command) + "\n")
        stream.flush()
        done = subprocess.run(command, cwd=folder, env={**os.environ, **ONE_THREAD}, stdout=stream, stderr=stream)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}; see {folder / log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu, 1)}


def train(config: dict[str, Any], folder: Path) -> tuple[Path, dict[str, float]]:
    """``dpa1 train`` with ``config`` in ``folder``/run, resumed when a run was interrupted there; model and time."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    model, spent = folder / "run" / "model.dpa1", folder / "spent.json"
    if not (model.exists() and spent.exists()):
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "output": "run"}, sort_keys=False))
        resume = (folder / "run" / "config.yaml").exists()
        command = [sys.executable, "-c", f"import dpa1; dpa1.train('config.yaml', resume={resume})"]
        spent.write_text(json.dumps(run_logged(command, folder, "train.log")))
    return model, json.loads(spent.read_text())


def small_config(data: Path, atoms: int, steps: int, seed: int) -> dict[str, Any]:
    """A small model with the package's defaults; nothing but path, size, cutoff, batch and length is set."""
    return {
        "data": {"train": str(data)},
        "model": {"size": "small", "cutoff": 5.0},
        "training": {"steps": steps, "batch_atoms": atoms, "threads": 1, "prefetch": False},
        "seed": seed,
    }


def errors(model: Path, data: Path | Sequence[Path]) -> dict[str, float]:
    """RMSE on labelled frames: energy in meV/atom, forces in meV/Å."""
    import torch

    import dpa1

    torch.set_num_threads(1)
    paths = [str(p) for p in ([data] if isinstance(data, Path) else data)]
    metrics = dpa1.evaluate(dpa1.load(str(model)), dpa1.read(paths if len(paths) > 1 else paths[0]))
    return {
        "energy_rmse_meV_atom": round(1e3 * metrics["energy_rmse"], 3),
        "force_rmse_meV_A": round(1e3 * metrics["force_rmse"], 2),
    }


def structures(path: Path) -> list[Any]:
    """All structures of a gzipped extended XYZ file, decompressed first: ASE seeks in it, which takes minutes instead."""
    from ase.io import read

    return read(io.StringIO(gzip.decompress(path.read_bytes()).decode()), ":", format="extxyz")


def machine() -> str:
    """One line on what the numbers were measured with."""
    from importlib.metadata import version

    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    return (
        f"{cpu}, {os.cpu_count()} cores (load average {os.getloadavg()[2]:.1f}), one thread per run; dpa1 {version('dpa1')}, "
        f"torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def save(value: Any, path: Path) -> None:
    """JSON, readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
