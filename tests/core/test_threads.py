"""Blocks of atoms on several threads: nothing but the time changes."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from dpa1.batch import make_batch
from dpa1.frames import make_frame
from dpa1.model import blockwise
from dpa1.model import potential as potential_module
from dpa1.model.blockwise import Blockwise
from dpa1.model.threads import SHARED_PAIRS, even_slots, spread, thread_count, threads_for_blocks
from tests.contracts.systems import CUTOFF, example_options, random_frame, random_potential


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_order_and_each_worker_has_one_thread():
    found, threads = [], []

    def work(number):
        threads.append(torch.get_num_threads())
        time.sleep(0.02 if number % 3 == 0 else 0.0)
        return number

    spread(range(20), work, found.append)
    assert found == list(range(20))
    assert threads == [1] * 20
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_single_item_gets_all_threads():
    found = []
    spread([1], lambda _: torch.get_num_threads(), found.append)
    assert found == [2]


@pytest.mark.usefixtures("two_threads")
def test_between_blocks_of_a_small_system_one_thread_works():
    inside = []

    @threads_for_blocks(100)
    @threads_for_blocks(100)
    def fail():
        inside.extend([torch.get_num_threads(), thread_count(), even_slots(17_000, 3000, 500)])
        spread(range(4), lambda _: (time.sleep(0.01), threading.get_ident())[1], inside.append)
        raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert inside[:3] == [1, 2, even_slots(17_000, 3000, 500)]
    assert len(set(inside[3:])) == 2
    with threads_for_blocks(SHARED_PAIRS):
        assert torch.get_num_threads() == 2
    # Neither this thread nor those that start later have lost any.
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), thread_count(), later) == (2, 2, [2])


@pytest.mark.usefixtures("two_threads")
def test_the_first_exception_ends_the_work():
    done = []

    def work(number):
        if number == 3:
            raise MemoryError("no more")
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(MemoryError, match="no more"):
        spread(range(1000), work)
    assert len(done) < 10
    spread(range(3), done.append)  # and the threads go on serving


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_the_caller_hold_inside(mode):
    found = []
    with mode():
        expected = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        spread(range(4), lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), found.append)
    assert found == [expected] * 4


@pytest.mark.usefixtures("two_threads")
def test_blocks_are_shared_out_evenly():
    assert even_slots(16_000, 3000, 500) < 3000
    assert even_slots(17_000, 3000, 500) * 6 >= 17_000
    assert even_slots(4000, 3000, 500) in range(2000, 2400)
    assert even_slots(0, 3000, 500) == even_slots(100, 3000, 500) == even_slots(900, 3000, 500) == 3000


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layers", [0, 1])
def test_atoms_without_neighbors(layers):
    potential = random_potential(example_options(attention_layers=layers))
    alone, far = make_frame([1], np.zeros((1, 3))), make_frame([1, 8], [[0, 0, 0], [0, 0, 3 * CUTOFF]])
    for frame in (alone, far):
        batch = make_batch([frame], CUTOFF)
        found = potential.predict(batch)
        assert found["energy"].item() == pytest.approx(
            potential.predict(make_batch([frame, far], CUTOFF))["energy"][0].item()
        )
        assert not found["forces"].any()
        work = Blockwise(potential, batch, forces=True, virial=True)
        work.backward(torch.ones(1, dtype=torch.float64), torch.zeros_like(batch.positions), None)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("again", [False, True])
def test_threads_change_nothing(monkeypatch, precision, again):
    for module in (potential_module, blockwise):
        monkeypatch.setattr(module, "CHUNK_SLOTS", 60)
    monkeypatch.setattr("dpa1.model.memory.even_slots", lambda slots, most, least: most)
    potential = random_potential(example_options(precision=precision))
    batch = make_batch([random_frame(1, 30), random_frame(2, 12)], CUTOFF)
    before, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            potential.zero_grad(set_to_none=True)
            work = Blockwise(potential, batch, again=again)
            work.backward(*(torch.ones_like(work.prediction[name]) for name in ("energy", "forces", "virial")))
            found.append([*work.prediction.values(), *(p.grad for p in potential.parameters() if p.grad is not None)])
        finally:
            torch.set_num_threads(before)
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


FORKED = """
import multiprocessing, sys
import torch
import dpa1
from ase.build import bulk

torch.set_num_threads(2)
atoms = bulk("Cu", cubic=True).repeat(3)
atoms.rattle(0.1)

def forces(queue):
    copy = atoms.copy()
    copy.calc = potential.calculator(level="pbe", dtype="float64")
    queue.put(copy.get_forces())

potential = dpa1.load("pbe")
context = multiprocessing.get_context("fork")
queue = context.Queue()
forces(queue)
mine = queue.get(timeout=60)
child = context.Process(target=forces, args=(queue,))
child.start()
theirs = queue.get(timeout=60)
child.join()
assert abs(mine - theirs).max() < 1e-9
"""


def test_a_forked_process_does_not_wait_for_threads_it_has_not():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=180)


def test_forces_in_inference_mode():
    frame = random_frame(0, 12)
    potential = random_potential(example_options(attention_layers=1))
    expected = potential.predict(make_batch([frame], CUTOFF))["forces"]
    with torch.inference_mode():
        found = potential.predict(make_batch([frame], CUTOFF))["forces"]
        tabulated = potential.tabulated().predict(make_batch([frame], CUTOFF))["forces"]
    assert torch.equal(found, expected)
    assert torch.allclose(tabulated, expected, atol=1e-5)
