"""Peak memory and processor time of one training step on 192 atoms of water, of both programs.

    python benchmarks/memory_training.py --deepmd DEEPMD_PYTHON [--output FILE]

Each case is a process of its own with one thread. A step on 24 atoms comes first, so that libraries and optimizer are
loaded; the peak is the largest resident size during the first step on 192 atoms less what the process held before.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed_worker import PROGRAMS, _forget_peak, _status

CASES = ("dpa1", "dpa1 recompute", "deepmd-kit")


def measure(case: str, stem: str, folder: Path) -> dict[str, float]:
    """One step in this process."""
    name, _, again = case.partition(" ")
    program = PROGRAMS[name]("cpu")
    program.torch.set_num_threads(1)
    program.load(f"{stem}.dp" if name == "deepmd-kit" else f"{stem}.dpa1", False)
    for system in ("water-24", "water-192"):
        program.structure(str(folder / f"{system}.npz"))
        if again:
            program.step = program._make_step("adam")
            program.step.recompute = True
        gc.collect()
        _forget_peak()
        before, begun = _status("VmRSS"), time.process_time()
        program.train("adam")
        peak, first = _status("VmHWM") - before, time.process_time() - begun
    spent = []
    for _ in range(3):
        begun = time.process_time()
        program.train("adam")
        spent.append(time.process_time() - begun)
    return {"peak_MB": round(peak / 1e6), "first_cpu_s": round(first, 3), "best_cpu_s": round(min(spent), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepmd", help="Python that has DeePMD-kit")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1], Path(options.one[2]))))
        return
    from speed_cases import model, structure

    from dpa1.interop.convert import convert

    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for system in ("water-24", "water-192"):
            structure(system, folder)
        for layers in (2, 0):
            for dtype in ("float32", "float64"):
                for case in CASES[: 3 if options.deepmd else 2]:
                    deepmd = case == "deepmd-kit"
                    stem = folder / f"{'deepmd' if deepmd else 'smooth'}-{layers}-{dtype}"
                    path = stem.with_suffix(".dpa1")
                    model("deepmd" if deepmd else "smooth", ("H", "O"), layers, dtype, 89.0, path)
                    if deepmd:
                        convert(path, stem.with_suffix(".dp"))
                    command = [options.deepmd if deepmd else sys.executable, __file__, "--one", case, str(stem), name]
                    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    row = {
                        "program": case,
                        "layers": layers,
                        "dtype": dtype,
                        **json.loads(answer.stdout.splitlines()[-1]),
                    }
                    lines.append(json.dumps(row))
                    print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
