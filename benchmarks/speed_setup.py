"""What the speed benchmark needs before it measures: DeePMD-kit's environment, and a record of the machine."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from speed_processes import available_memory


def deepmd_python(args: argparse.Namespace, work: Path) -> Path:
    """The interpreter of DeePMD-kit's environment, which is made here when none is given."""
    folder = args.deepmd_env or work / "deepmd"
    python = folder / "bin" / "python"
    if args.deepmd_env is None and not (folder / "installed").exists():
        options = list(args.pip_option)
        if not options and shutil.which("nvidia-smi") is None:
            options = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]  # no gigabytes for a GPU
        print(f"installing DeePMD-kit 3.2.0 into {folder} (torch 2.11; a few minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", *options]
        logged([*pip, "torch==2.11.*"], work / "install.log")
        logged([*pip, "deepmd-kit[torch]==3.2.0", "torch==2.11.*", "mpich"], work / "install.log")
        (folder / "installed").touch()
    if not python.exists():
        raise SystemExit(f"{python}: no such interpreter; give --deepmd-env an environment that holds deepmd-kit 3.2")
    return python


def logged(command: list[str], log: Path) -> None:
    with log.open("a") as stream:
        stream.write("$ " + " ".join(command) + "\n")
        stream.flush()
        code = subprocess.run(command, stdout=stream, stderr=stream).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}; see {log}")


def environment(args: argparse.Namespace, deepmd: Path | None) -> dict[str, Any]:
    """Versions, processor, threads, command."""
    from importlib.metadata import version

    import torch

    info, cpu = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    theirs = None
    if deepmd:
        code = "from importlib.metadata import version as v; print(v('deepmd-kit'), v('torch'))"
        theirs = subprocess.run([deepmd, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    arguments = [a if not a.startswith("/") else "…" for a in sys.argv[1:]]
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "memory_gb": round(available_memory() / 1e9, 1),
        "dpa1": version("dpa1"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "deepmd-kit": theirs[0] if theirs else None,
        "deepmd_torch": theirs[1] if theirs else None,
        "quick": args.quick,
        "command": " ".join(["python benchmarks/speed.py", *arguments]),
        "date": time.strftime("%Y-%m-%d"),
    }
