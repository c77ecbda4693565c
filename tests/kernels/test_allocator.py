"""Freed memory stays with the process: a large array does not fault its pages in again."""

import platform
import subprocess
import sys

import pytest

from dpa1.kernels.allocator import LARGEST_KEPT, keep_freed_memory

PROGRAM = """
import resource, sys, torch
from concurrent.futures import ThreadPoolExecutor
from dpa1.kernels.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touch():
    blocks = [torch.ones(2_000_000) for _ in range(20)]
if sys.argv[2] == "thread":
    pool, first = ThreadPoolExecutor(1), touch
    touch = lambda: pool.submit(first).result()
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(15):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_pages_are_kept(where):
    assert LARGEST_KEPT > 2_000_000 * 4

    def faults(mode):
        run = subprocess.run([sys.executable, "-c", PROGRAM, mode, where], capture_output=True, text=True, check=True)
        return int(run.stdout)

    fewest = min(faults("keep") for _ in range(3))  # what else the process does can only add to them
    assert fewest * 3 < faults("return")


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert not keep_freed_memory()
