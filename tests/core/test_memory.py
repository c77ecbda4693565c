"""Inference goes on in smaller pieces when memory is short, with the same result."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.errors import RunError
from dpa1.model import memory
from dpa1.model.potential import Potential
from dpa1.model.rows import plan_rows
from tests.contracts.systems import random_frame

CPU = torch.device("cpu")


@pytest.fixture
def potential():
    torch.manual_seed(0)
    config = ModelConfig(
        elements=("H", "O", "Cu"), cutoff=4.0, mean_neighbors=30.0, embedding=(4, 8), axis=3, attention_width=6,
        fitting=(6, 6), precision="float64",
    )  # fmt: skip
    return Potential(config)


@pytest.fixture
def batch():
    return make_batch([random_frame(1, 9), random_frame(2, 5)], 4.0)


def failing(work, most, error):
    """``work`` that has memory for blocks of so many slots."""

    def attempt(plan):
        if plan.pairs.numel() > most:
            raise error
        work(plan)

    return attempt


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_same_result_in_pieces(potential, batch, error, monkeypatch, caplog):
    expected = potential.predict(batch, descriptor=True)
    energies = Potential.energies

    def scarce(self, rows, level, tables=None):
        if rows.mask.numel() > 200:
            raise error
        return energies(self, rows, level, tables)

    monkeypatch.setattr(Potential, "energies", scarce)
    found = potential.predict(batch, descriptor=True)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-12), key
    assert "do not fit into memory: going on with at most" in caplog.text
    caplog.clear()
    potential.predict(batch)
    assert not caplog.text  # remembered


def test_other_errors_pass(potential, batch, monkeypatch):
    monkeypatch.setattr(Potential, "energies", lambda *_: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        potential.predict(batch)


def test_one_atom_too_many(batch):
    def nothing(_):
        raise MemoryError

    plans = plan_rows(batch.centre, len(batch.numbers))
    with pytest.raises(RunError, match=r"an atom with \d+ neighbors does not fit into the memory that is free"):
        memory.in_blocks(plans, nothing)


def test_every_atom_once(batch):
    seen = []
    plans = plan_rows(batch.centre, len(batch.numbers))
    work = failing(lambda plan: seen.append(plan.atoms), 100, MemoryError())
    most = memory.in_blocks(plans, work)
    assert most is not None
    assert torch.cat(seen).sort().values.tolist() == list(range(len(batch.numbers)))
    assert memory.in_blocks(plan_rows(batch.centre, len(batch.numbers)), work, most) <= most


def test_free_memory_is_plausible():
    assert 1e6 < memory.free_memory(CPU) < 1e15


def test_capacity_grows_with_memory(potential):
    config = potential.config
    small, large = (memory.capacity(config, torch.float64, 90.0, size) for size in (10**9, 10**10))
    assert 0 < small < large < 10**10 / 1000
    assert memory.capacity(config, torch.float64, 90.0, 1000) == 0


LIMITED = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from ase.build import bulk
from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.frames import from_ase
from dpa1.model import memory, potential as module
from dpa1.model.potential import Potential

torch.manual_seed(0)
potential = Potential(ModelConfig(elements=("Cu",), cutoff=6.0, mean_neighbors=80.0, precision="float64"))
potential.requires_grad_(False)
potential.predict(make_batch([from_ase(bulk("Cu", cubic=True))], 6.0))
atoms = bulk("Cu", cubic=True) * (7, 7, 7)
atoms.rattle(0.05, seed=0)
batch = make_batch([from_ase(atoms)], 6.0)
expected = potential.predict(batch)["forces"]
used = memory._line("/proc/self/status", "VmSize")
# What the first call needed came from the same heap: a fresh limit leaves less than that.
limit = used + int(float(sys.argv[1]) * 1e6)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if sys.argv[2] == "blind":
    memory.free_memory = lambda device: 10**12
    module.CHUNK_SLOTS = 2_000_000
found = potential.predict(batch)["forces"]
print(json.dumps({"difference": float((found - expected).abs().max()), "most": potential._most_slots}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the limit of Linux on address space")
@pytest.mark.parametrize("knowledge", ["aware", "blind"])
def test_under_a_real_limit(knowledge, tmp_path):
    """A block of the usual size needs some 1.5 GB here; 400 MB must do. Blind: found out by failing allocations."""
    script = tmp_path / "limited.py"
    script.write_text(textwrap.dedent(LIMITED))
    done = subprocess.run(
        [sys.executable, str(script), "400", knowledge], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["difference"] < 1e-12
    assert (answer["most"] is None) == (knowledge == "aware")
