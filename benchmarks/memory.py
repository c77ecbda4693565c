"""Peak memory and time of one call (energy, forces, virial) on water of growing size, each case in a fresh process.

    python benchmarks/memory.py [--sizes 192 1536 12288 98304] [--layers 0 2] [--dtypes float32 float64] [--output FILE]

The peak is the largest resident size of the process less what it held before the call (interpreter, libraries, model,
structure). Every line of the output file is one case; ``kB_per_atom`` is the peak divided by the atoms, and the last
lines fit ``peak = constant + slope · atoms`` through the cases of one model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from speed_cases import model, water


def measure(path: str, molecules: int, threads: int) -> dict[str, float]:
    """One call in this process."""
    import torch

    from dpa1.batch import make_batch
    from dpa1.frames import make_frame
    from dpa1.model.file import load_model
    from dpa1.model.inference import frozen_copy

    torch.set_num_threads(threads)
    potential = frozen_copy(load_model(Path(path)), None, torch.device("cpu"))

    def call(data: dict[str, np.ndarray]) -> dict[str, float]:
        frame = make_frame(data["numbers"], data["positions"], data["cell"], True)
        before, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
        batch = make_batch([frame], potential.cutoff)
        listed = time.process_time() - cpu
        prediction = potential.predict(batch)
        return {
            "atoms": len(frame),
            "pairs_per_atom": len(batch.centre) / len(frame),
            "peak_MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6,
            "cpu_s": time.process_time() - cpu,
            "list_cpu_s": listed,
            "wall_s": time.perf_counter() - wall,
            "net_force": float(prediction["forces"].sum(0).abs().max()),
        }

    call(water(2))  # libraries are loaded and fast paths proven before anything is counted
    return call(water(molecules))


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key + ":")).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 1536, 12288, 98304])
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.threads)))
        return
    lines = []
    for layers in options.layers:
        for dtype in options.dtypes:
            rows = []
            for size in options.sizes:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "model.dpa1"
                    model("smooth", ("H", "O"), layers, dtype, 89.0, path)
                    command = [sys.executable, __file__, "--threads", str(options.threads), "--one", str(path)]
                    edge = round((size / 3) ** (1 / 3))
                    answer = subprocess.run([*command, str(edge)], check=True, stdout=subprocess.PIPE, text=True)
                row = {"layers": layers, "dtype": dtype, **json.loads(answer.stdout.splitlines()[-1])}
                row["kB_per_atom"] = row["peak_MB"] * 1e3 / row["atoms"]
                row["ms_cpu_per_atom"] = row["cpu_s"] * 1e3 / row["atoms"]
                rows.append(row)
                lines.append(json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}))
                print(lines[-1], flush=True)
            if len(rows) > 1:
                slope, constant = np.polyfit([r["atoms"] for r in rows], [r["peak_MB"] for r in rows], 1)
                fit = {"layers": layers, "dtype": dtype, "constant_MB": round(constant), "kB_per_atom": slope * 1e3}
                lines.append(json.dumps(fit))
                print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
