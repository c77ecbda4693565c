"""Blocks of atoms on several CPU threads: each thread takes a block of its own.

The operations on one block are too short to be shared out: with all threads on each of them, waiting for one another
takes a third of the time. Nor are those between the blocks of a small system: after each of them torch's threads
stay awake for a while, on the cores that the next blocks need.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from typing import TypeVar

import torch

from dpa1.kernels import openblas

T = TypeVar("T")
R = TypeVar("R")
SHARED_PAIRS = 400_000  # of neighbours: from here on operations on all of them are worth sharing out


class _State(threading.local):
    team = 0  # threads for blocks, where this thread does the rest alone


_state = _State()


@contextmanager
def threads_for_blocks(pairs: int) -> Iterator[None]:
    """Inside, only blocks are shared out, unless there are many ``pairs``; this thread does alone what is between."""
    count = torch.get_num_threads()
    with openblas.alone():
        if _state.team or count == 1 or pairs >= SHARED_PAIRS:
            yield
            return
        _state.team = count
        torch.set_num_threads(1)
        try:
            yield
        finally:
            _state.team = 0
            torch.set_num_threads(count)


def thread_count() -> int:
    """How many threads work on blocks at once."""
    return _state.team or torch.get_num_threads()


def spread(
    items: Iterable[T], work: Callable[[T], R], take: Callable[[R], None] | None = None, parallel: bool = True
) -> None:
    """``work`` of every item on ``thread_count()`` threads; a single item by this one.

    ``take`` receives the results in the order of the items, whichever thread ends first, so sums are reproducible.
    The first exception is raised as soon as the other threads have finished what they were at.
    """
    count, rest = thread_count() if parallel else 1, iter(items)
    first = list(islice(rest, 2))
    todo = chain(first, rest)
    if count == 1 or len(first) < 2:
        for item in todo:
            result = work(item)
            if take:
                take(result)
        return
    numbered, lock = enumerate(todo), threading.Lock()
    waiting: dict[int, R] = {}
    taken = 0
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    failed = threading.Event()

    def hand_over(number: int, result: R) -> None:
        nonlocal taken
        with lock:
            waiting[number] = result
            while take and taken in waiting:
                take(waiting.pop(taken))
                taken += 1

    def run() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            while not failed.is_set():
                with lock:
                    number, item = next(numbered, (-1, None))
                if item is None:
                    return
                try:
                    result = work(item)
                    if take:
                        hand_over(number, result)
                except BaseException:
                    failed.set()
                    raise

    pool = _pool(count)
    running = [pool.submit(run) for _ in range(count)]
    try:
        for future in running:
            future.result()
    finally:
        failed.set()
        wait(running)


def even_slots(slots: int, most: int, least: int) -> int:
    """How large blocks should be, of ``slots`` in all, for the threads to end together: ``most`` at the most.

    least: of a block; below, handing it to a thread costs more than it brings.
    """
    count = thread_count()
    blocks = min(math.ceil(math.ceil(slots / most) / count) * count, max(1, slots // least))
    if count == 1 or blocks <= 1:
        return most
    # A little more than its share, as blocks hold whole atoms and some padding.
    return min(most, math.ceil(1.1 * slots / blocks))


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    _mind_forks()
    mine = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "dpa1-block", initializer=_alone)
    barrier = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(barrier.wait)
    barrier.wait()
    # The threads' own setting has become the default of threads yet to come; this one's and theirs differ.
    torch.set_num_threads(mine)
    return pool


@cache
def _mind_forks() -> None:
    """A forked process has none of its parent's threads, so it would wait for them forever: it works alone."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    _pool.cache_clear()
    torch.set_num_threads(1)


def _alone() -> None:
    torch.get_num_threads()  # the first call in a thread takes over the default, and would undo the next line later
    torch.set_num_threads(1)
