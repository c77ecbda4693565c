"""Packed store at many frames: writing, opening, reading in order and shuffled, memory; and what a loader reaches.

    python benchmarks/data_store.py DATA --frames 1000 10000 100000 --output docs/results/raw/data-store.json

Frames are those of DATA repeated with Gaussian noise of 0.01 Å on the positions (seed 0). Every measurement runs in a
process of its own, so the resident memory is that of the measurement alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def noisy(data: str, n: int) -> Iterator[Any]:
    from dpa1.data.read import read

    template = read(data)
    random = np.random.default_rng(0)
    for k in range(n):
        frame = template[k % len(template)]
        yield frame.replace(positions=frame.positions + 0.01 * random.normal(size=frame.positions.shape))


def resident() -> float:
    """MB of resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def write(path: str, data: str, n: int) -> dict[str, float]:
    from dpa1.data.store import write_store

    frames = list(noisy(data, min(n, 2000)))
    before, start, worked = resident(), time.perf_counter(), time.process_time()
    write_store((frames[k % len(frames)] for k in range(n)), path)
    seconds = time.perf_counter() - start
    worked = time.process_time() - worked
    return {"frames_per_s": n / seconds, "frames_per_cpu_s": n / worked, "MB_per_s": os.path.getsize(path) / 1e6 / seconds,
            "MB": os.path.getsize(path) / 1e6, "memory_growth_MB": resident() - before}  # fmt: skip


def opened(path: str) -> dict[str, float]:
    from dpa1.data.store import Store

    before, start = resident(), time.perf_counter()
    store = Store(path)
    return {"seconds": time.perf_counter() - start, "frames": len(store), "memory_growth_MB": resident() - before}


def streamed(path: str, shuffled: bool) -> dict[str, Any]:
    """Two passes; memory is noted at every tenth of the second."""
    from dpa1.data.store import Store

    store = Store(path)
    order = np.random.default_rng(1).permutation(len(store)) if shuffled else np.arange(len(store))
    order = order.tolist()
    for i in order[:1000]:
        store[i]
    memory, start, worked = [], time.perf_counter(), time.process_time()
    for k, i in enumerate(order):
        store[i]
        if k % max(1, len(order) // 10) == 0:
            memory.append(round(resident(), 1))
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    return {"frames_per_s": len(order) / seconds, "frames_per_cpu_s": len(order) / worked, "memory_MB": memory}


def loaded(path: str, prefetch: int, cache: int) -> dict[str, Any]:
    """Batches of 256 atoms with neighbours within 5 Å, as training asks for them, for 10 s at most."""
    from dpa1.data.dataset import open_dataset
    from dpa1.data.loader import Loader
    from dpa1.data.sampler import Budget, Sampler

    start = time.perf_counter()
    dataset = open_dataset(path)
    loader = Loader(dataset, Sampler(dataset.sizes, Budget("atoms", 256), 0), 5.0, cache, prefetch)
    next(loader)
    first = time.perf_counter() - start
    frames = atoms = batches = 0
    start, worked = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < 10 and batches < 1000:
        batch = next(loader)
        frames, atoms, batches = frames + len(batch), atoms + len(batch.numbers), batches + 1
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    loader.close()
    return {"first_batch_s": first, "batches_per_s": batches / seconds, "frames_per_s": frames / seconds,
            "atoms_per_s": atoms / seconds, "atoms_per_cpu_s": atoms / worked, "memory_MB": resident()}  # fmt: skip


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", default=None, help="where the stores lie meanwhile")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    results: dict[str, Any] = {"data": Path(options.data).name, "python": platform.python_version(),
                               "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                               "load_before": os.getloadavg(), "sizes": {}}  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for n in options.frames:
            path = f"{folder}/{n}.dpa1data"
            row = {
                "write": alone(write, path, options.data, n),
                "open": alone(opened, path),
                "in order": alone(streamed, path, False),
                "shuffled": alone(streamed, path, True),
                "loader": alone(loaded, path, 0, 0),
                "loader, thread": alone(loaded, path, 2, 0),
                "loader, cached neighbors": alone(loaded, path, 0, 1 << 30),
            }
            os.unlink(path)
            results["sizes"][n] = row
            print(n, json.dumps(row), flush=True)
    results["load_after"] = os.getloadavg()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
