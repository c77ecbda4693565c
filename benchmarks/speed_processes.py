"""The processes of the speed benchmark as ``speed.py`` sees them."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # s; a single call that takes longer is given up and written down as such


class FailedError(Exception):
    """A measurement that gave no number. ``kind``: memory, time or error; ``reason``: for the table."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Worker:
    """``speed_worker.py`` in a process of its own; ``ask`` calls one of its commands."""

    def __init__(self, python: Path, program: str, device: str, threads: int, log: Path) -> None:
        count = str(threads)
        settings = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "DP_INTRA_OP_PARALLELISM_THREADS": count,
                    "DP_INTER_OP_PARALLELISM_THREADS": "0", "DEVICE": device, "PYTHONUNBUFFERED": "1"}  # fmt: skip
        script = Path(__file__).with_name("speed_worker.py")
        self.log = log.open("a")
        self.process = subprocess.Popen(
            [str(python), str(script), program, device, count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **settings},
            text=True,
        )
        self.loaded: dict[str, Any] = {}

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """The answer to one command.

        Raises
        ------
        FailedError
            when it ran out of memory or time, or the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        limit = command.get("limit")
        try:
            self.process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise FailedError(
                "error", f"process ended with exit code {self.process.wait()}; see {self.log.name}"
            ) from None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise FailedError("time", f"more than {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            if limit is not None and code < 0:
                raise FailedError("memory", f"does not fit: ended by signal {-code} with {limit / 1e9:.2g} GB to use")
            raise FailedError("error", f"process ended with exit code {code}; see {Path(self.log.name).name}")
        answer = json.loads(line)
        if answer.get("failed") == "memory":
            size = f"{limit / 1e9:.2g} GB" if limit else "the memory"
            raise FailedError("memory", f"does not fit: needs more than {size}")
        if "failed" in answer:
            raise FailedError("error", answer["text"].strip().splitlines()[-1][:200])
        return dict(answer)

    def resident(self) -> float:
        """Bytes of memory the process holds; 0 where the system does not tell."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0.0
        return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmRSS")), 0.0)

    def close(self) -> None:
        """End the process."""
        if self.process.stdin and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                self.process.kill()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def available_memory() -> float:
    """Bytes that can be had without swapping."""
    info = Path("/proc/meminfo")
    if info.exists():
        line = next((x for x in info.read_text().splitlines() if x.startswith("MemAvailable")), None)
        if line:
            return int(line.split()[1]) * 1024.0
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) * 0.7


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, statistics.median(values), high]
