"""One program of the speed benchmark in its own process: commands come in as JSON lines, measurements go out the same way.

It runs under the interpreter of either program, so it imports only what both have (numpy, torch) and its own program.
``speed.py`` starts it; the commands are the methods of ``Session`` without an underscore.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

RATE, RAMP = 1e-6, 1.0  # a learning rate that leaves the weights where they are, and prefactors as at the start
BURST, MOST_CALLS = 0.6, 6
LONG = 4.0  # s; beyond, one call says it
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|bad_alloc|out of memory|Unable to allocate|not enough memory|Resource temporarily", re.I
)


class Ours:
    """This package."""

    def __init__(self, device: str) -> None:
        import numba  # noqa: F401
        import torch

        import dpa1.model.file
        import dpa1.training.step  # noqa: F401  everything that is imported belongs to the time of importing
        from dpa1.kernels.allocator import keep_freed_memory

        keep_freed_memory()  # as every run of ``dpa1`` does
        self.torch, self.device = torch, device

    def load(self, model: str, tabulated: bool) -> None:
        from dpa1.model.file import load_model

        self.potential = load_model(model).to(self.device)
        if tabulated:
            self.potential = self.potential.tabulated()
        self.step = None

    def structure(self, path: str) -> None:
        from dpa1.frames import make_frame

        data = {key: value for key, value in np.load(path).items() if key != "symbols"}
        self.frame = make_frame(**data, pbc=True, source=Path(path).stem)
        self.cached = None

    def batch(self) -> Any:
        from dpa1.batch import make_batch

        return make_batch([self.frame], self.potential.cutoff, device=self.device)

    def evaluate(self) -> tuple[float, np.ndarray, np.ndarray]:
        out = self.potential.predict(self.batch())
        return float(out["energy"]), out["forces"].cpu().numpy(), out["virial"][0].cpu().numpy()

    def train(self, optimizer: str) -> None:
        """One step as ``dpa1 train`` does it from the second epoch on: the neighbour list comes from the cache."""
        from dpa1.batch import make_batch
        from dpa1.neighbors import find_neighbors

        if self.step is None:
            self.step = self._make_step(optimizer)
        if self.cached is None:
            self.cached = [find_neighbors(self.frame, self.potential.cutoff)]
        batch = make_batch([self.frame], self.potential.cutoff, self.cached).to(self.device)
        if not self.step([batch], RATE, RAMP).finite:
            raise RuntimeError("the loss is not finite")

    def _make_step(self, optimizer: str) -> Any:
        from dpa1.config.training import LossConfig, OptimizerConfig, TrainingConfig
        from dpa1.training.distributed import World
        from dpa1.training.loss import Loss
        from dpa1.training.optimizer import Clipper, make_optimizer
        from dpa1.training.step import Step

        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        device = self.torch.device(self.device)
        return Step(
            self.potential,
            Loss(LossConfig()),
            make_optimizer(parameters, OptimizerConfig(kind=optimizer)),
            Clipper(TrainingConfig(), device),
            World(0, 1, device),
            None,
        )


class DeePMD:
    """DeePMD-kit's PyTorch backend: inference with the frozen model, training as its trainer's loop does it."""

    def __init__(self, device: str) -> None:
        import torch
        from deepmd.infer import DeepPot
        from deepmd.pt.train.wrapper import ModelWrapper

        self.torch, self.device, self.DeepPot, self.Wrapper = torch, device, DeepPot, ModelWrapper

    def load(self, model: str, tabulated: bool) -> None:
        self.path, self.potential = Path(model), self.DeepPot(model)
        self.wrapper = None

    def structure(self, path: str) -> None:
        self.data, self.wrapper = dict(np.load(path)), None
        kinds = self.potential.get_type_map()
        self.types = [kinds.index(symbol) for symbol in self.data["symbols"].tolist()]

    def evaluate(self) -> tuple[float, np.ndarray, np.ndarray]:
        positions, cell = self.data["positions"].reshape(1, -1), self.data["cell"].reshape(1, 9)
        energy, forces, virial = self.potential.eval(positions, cell, self.types)[:3]
        return float(energy[0, 0]), forces[0], virial[0].reshape(3, 3)

    def train(self, optimizer: str) -> None:
        if self.wrapper is None:
            self._prepare_training()
        self.optimizer.zero_grad(set_to_none=True)
        _, loss, _ = self.wrapper(**self.inputs, cur_lr=RATE, label=self.labels, task_key="Default")
        loss.backward()
        self.optimizer.step()
        if not np.isfinite(float(loss.detach())):
            raise RuntimeError("the loss is not finite")

    def _prepare_training(self) -> None:
        from deepmd.dpmodel.utils.serialization import load_dp_model
        from deepmd.pt.loss.ener import EnergyStdLoss
        from deepmd.pt.model.model.model import BaseModel

        torch, data = self.torch, self.data
        model = BaseModel.deserialize(load_dp_model(str(self.path.with_suffix(".dp")))["model"])
        loss = EnergyStdLoss(
            starter_learning_rate=RATE, start_pref_e=0.1, limit_pref_e=1.0, start_pref_f=100.0, limit_pref_f=20.0
        )
        self.wrapper = self.Wrapper(model, loss).to(self.device)
        self.wrapper.train()
        self.optimizer = torch.optim.Adam(self.wrapper.parameters(), lr=RATE, fused=self.device != "cpu")

        def tensor(value: Any, *shape: int) -> Any:
            return torch.tensor(value, dtype=torch.float64, device=self.device).reshape(shape)

        atoms = len(self.types)
        self.inputs = {
            "coord": tensor(data["positions"], 1, atoms, 3).requires_grad_(True),
            "atype": torch.tensor([self.types], device=self.device),
            "box": tensor(data["cell"], 1, 9),
        }
        self.labels = {"energy": tensor(data["energy"], 1, 1), "force": tensor(data["forces"], 1, atoms, 3)}
        self.labels |= {"find_energy": 1.0, "find_force": 1.0}


PROGRAMS = {"deepmd-kit": DeePMD, "dpa1": Ours}


class Session:
    """What can be asked for. Every answer is a dict; times in seconds, memory in bytes."""

    def __init__(self, program: str, device: str, threads: int) -> None:
        begun = time.perf_counter()
        self.program = PROGRAMS[program](device)
        self.torch, self.device = self.program.torch, device
        self.torch.set_num_threads(threads)
        self.import_s = time.perf_counter() - begun
        self.baseline = _status("VmRSS")

    def load(self, model: str, structure: str, tabulated: bool = False) -> dict[str, Any]:
        begun = time.perf_counter()
        self.program.load(model, tabulated)
        self.program.structure(structure)
        return {"import_s": self.import_s, "load_s": time.perf_counter() - begun, "torch": self.torch.__version__}

    def structure(self, path: str) -> dict[str, Any]:
        self.program.structure(path)
        return {}

    def inference(self, limit: float | None = None) -> dict[str, Any]:
        """Energy, forces and virial of the structure, neighbour list included."""
        return self._measure(self.program.evaluate, limit)

    def training(self, limit: float | None = None, optimizer: str = "adam") -> dict[str, Any]:
        """One optimizer step on the structure."""
        self._import_compiler()
        return self._measure(lambda: self.program.train(optimizer), limit)

    def _import_compiler(self) -> None:
        """torch imports its compiler with the first optimizer, DeePMD-kit when it is imported: for both it is no part of a step."""
        before = _status("VmRSS")
        import torch._dynamo  # noqa: F401

        self.baseline += _status("VmRSS") - before

    def result(self, path: str) -> dict[str, Any]:
        """Energy, forces and virial into a file, to compare the programs."""
        energy, forces, virial = self.program.evaluate()
        np.savez(path, energy=energy, forces=forces, virial=virial)
        return {}

    def neighbors(self) -> dict[str, Any]:
        """Neighbour list and batch alone."""
        return self._measure(self.program.batch, None)

    def matmul(self, dtype: str, shapes: list[list[int]], seconds: float) -> dict[str, Any]:
        """FLOP/s of ``(b, m, k) @ (b, k, n)`` into an allocated result, the median over ``seconds`` for each shape."""
        kind, rates = getattr(self.torch, dtype), []
        for count, m, k, n in shapes:
            left = self.torch.randn(count, m, k, dtype=kind, device=self.device).squeeze(0)
            right = self.torch.randn(count, k, n, dtype=kind, device=self.device).squeeze(0)
            out = left @ right
            spent, begun = [], time.perf_counter()
            while time.perf_counter() - begun < seconds or len(spent) < 5:
                spent.append(self._timed(lambda a=left, b=right, c=out: self.torch.matmul(a, b, out=c)))
            rates.append(2.0 * count * m * k * n / statistics.median(spent))
        return {"rates": rates}

    def profile(self, task: str, optimizer: str, repeats: int) -> dict[str, Any]:
        """Self time of every torch operator over some repetitions, and the wall time of the same, on one thread.

        The profiler sees the thread that calls it alone, and no products by OpenBLAS unless they are marked.
        """
        from torch.profiler import ProfilerActivity, profile

        if self.device == "cpu":
            self.torch.set_num_threads(1)
        work = self.program.evaluate if task == "inference" else lambda: self.program.train(optimizer)
        work()
        with marked_products(), profile(activities=[ProfilerActivity.CPU]) as record:
            wall = sum(self._timed(work) for _ in range(repeats))
        spent = {event.key: event.self_cpu_time_total * 1e-6 / repeats for event in record.key_averages()}
        return {"wall_s": wall / repeats, "operators": spent}

    def waiting(self, config: dict[str, Any], skip: int) -> dict[str, Any]:
        """``dpa1 train`` with two clocks: how long steps took and how long the loop waited for the next batch."""
        import dpa1
        from dpa1.data.loader import Loader
        from dpa1.training.step import Step

        waits, steps = _clock(Loader, "__next__"), _clock(Step, "__call__")
        dpa1.train(config, quiet=True)
        # The batches that were read before the loop (for the energy bias) come first; the loop's are the last ones.
        waits = waits[len(waits) - len(steps) :]
        return {"waiting_s": sum(waits[skip:]), "steps_s": sum(steps[skip:]), "steps": len(steps) - skip}

    def _timed(self, work: Any) -> float:
        begun = time.perf_counter()
        work()
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return time.perf_counter() - begun

    def _measure(self, work: Any, limit: float | None) -> dict[str, Any]:
        """Time and peak memory of a call; with ``limit`` it may take this many bytes more than it has now.

        Training and dynamics call again and again, so what is short is called up to ``MOST_CALLS`` times in ``BURST`` seconds,
        at least twice: the median of all calls but the first, which finds threads asleep and caches filled by other programs.
        """
        gpu = self.device != "cpu"
        held = self.torch.cuda.memory_allocated() if gpu else 0
        if gpu:
            self.torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()
        if limit is not None and not gpu:
            resource.setrlimit(resource.RLIMIT_AS, (int(_status("VmSize") + limit), resource.RLIM_INFINITY))
        try:
            spent = [self._timed(work)]
            if spent[0] < LONG:
                more = min(MOST_CALLS, max(2, int(BURST / spent[0]))) - 1
                spent += [self._timed(work) for _ in range(more)]
            seconds = statistics.median(spent[1:] or spent)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        peak = self.torch.cuda.max_memory_allocated() - held if gpu else _status("VmHWM") - self.baseline
        return {"seconds": seconds, "peak": peak}


@contextmanager
def marked_products() -> Iterator[None]:
    """Inside, torch's profiler sees this package's own products of matrices."""
    from torch.profiler import record_function

    from dpa1.kernels import openblas

    plain = openblas.multiply

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function("dpa1::product"):
            return plain(*args, **kwargs)

    with mock.patch.object(openblas, "multiply", marked):
        yield


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status; where there is none, the largest resident size so far."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(next(line for line in text.splitlines() if line.startswith(key + ":")).split()[1]) * 1024


def _forget_peak() -> None:
    """Let the kernel count the peak from now on, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _clock(owner: type, name: str) -> list[float]:
    """Replace a method by itself with a clock; the list fills with seconds."""
    method, spent = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begun)

    setattr(owner, name, timed)
    return spent


def main() -> None:
    program, device, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # What either program prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session = Session(program, device, threads)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(session, command.pop("do"))(**command)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text)
            answer = {"failed": "memory" if memory else "error", "text": text[-2000:]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
