"""The Triton kernels equal their references in values, first and second derivatives.

With a GPU they run on it; without one through Triton's interpreter, on the CPU, in a process of its own: it must be chosen
before triton is imported, and would then hold for every kernel of the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_cases.py")


def test_through_the_interpreter_or_on_the_gpu():
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
