"""Loader: from frame numbers to batches with their neighbours, prepared ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpa1.batch import Batch, make_batch
from dpa1.data.dataset import Dataset
from dpa1.data.sampler import Sampler
from dpa1.frames import Frame
from dpa1.neighbors import Neighbors, find_neighbors


class NeighborCache:
    """Neighbour lists of the first frames that fit into ``limit`` bytes, in compact integers."""

    def __init__(self, cutoff: float, limit: int) -> None:
        self.cutoff, self.limit, self.used = cutoff, limit, 0
        self._lists: dict[int, tuple[np.ndarray, ...]] = {}

    def get(self, i: int, frame: Frame) -> Neighbors:
        """The neighbours of frame number i, found again or for the first time."""
        if i in self._lists:
            counts, neighbor, shift = self._lists[i]
            return Neighbors(np.repeat(np.arange(len(counts)), counts), neighbor.astype(np.int64), shift)
        neighbors = find_neighbors(frame, self.cutoff)
        if self.used < self.limit:
            small = np.abs(neighbors.shift).max(initial=0) < 127
            entry = (
                np.bincount(neighbors.centre, minlength=len(frame)).astype(np.int32),
                neighbors.neighbor.astype(np.uint16 if len(frame) < 2**16 else np.int32),
                neighbors.shift.astype(np.int8 if small else np.int32),
            )
            size = sum(array.nbytes for array in entry) + 400
            if self.used + size <= self.limit:
                self._lists[i] = entry
                self.used += size
        return neighbors


class Loader:
    """Endless batches in the order of a sampler.

    ``state_dict`` is the position after the batch last handed out, whatever was prepared ahead, so a continued loader
    gives exactly the batches the interrupted one would have given. ``indices`` are the frames of that last batch.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Frame],
        sampler: Sampler,
        cutoff: float,
        cache_neighbors: int = 1 << 30,
        prefetch: int = 2,
        levels: Sequence[str] = (),
    ) -> None:
        """``cache_neighbors``: bytes of neighbour lists to keep. ``prefetch``: batches prepared ahead in a thread; 0
        prepares each when asked for. ``levels``: the potential's, for ``Batch.level``."""
        self.dataset, self.sampler, self.prefetch, self.levels = dataset, sampler, prefetch, tuple(levels)
        self.cache = NeighborCache(cutoff, cache_neighbors)
        self.indices = np.zeros(0, dtype=np.int64)
        self._state = sampler.state_dict()
        self._queue: queue.Queue[tuple[Batch | None, Any, np.ndarray]] | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def make(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The batch of some frames."""
        numbers = [int(i) for i in indices]
        frames = [self.dataset[i] for i in numbers]
        neighbors = [self.cache.get(i, frame) for i, frame in zip(numbers, frames, strict=True)]
        return make_batch(frames, self.cache.cutoff, neighbors, self.levels)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.prefetch == 0:
            self.indices = self.sampler.next()
            self._state = self.sampler.state_dict()
            return self.make(self.indices)
        if self._thread is None:
            self._start()
        assert self._queue is not None
        ready, state, self.indices = self._queue.get()
        if ready is None:
            self.close()
            raise state
        self._state = state
        return ready

    @property
    def epochs(self) -> float:
        """Epochs handed out so far."""
        return self._state["epoch"] + self._state["position"] / len(self.sampler.batches(self._state["epoch"]))

    def _start(self) -> None:
        self._queue = queue.Queue(maxsize=self.prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(self._queue, self._stop), daemon=True, name="dpa1-loader"
        )
        self._thread.start()

    def _work(self, ready: queue.Queue[tuple[Batch | None, Any, np.ndarray]], stop: threading.Event) -> None:
        item: tuple[Batch | None, Any, np.ndarray]
        chosen = self.indices
        while not stop.is_set():
            try:
                chosen = self.sampler.next()
                state = self.sampler.state_dict()
                item = (self.make(chosen), state, chosen)
            except BaseException as error:
                # Raised in the thread that asks for the batch.
                item = (None, error, chosen)
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[0] is None:
                return

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position after the batch last handed out (JSON-able)."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; what was prepared ahead is dropped."""
        self.close()
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()

    def close(self) -> None:
        """End the thread; the next batch asked for starts it again where the last one handed out ended."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread, self._queue = None, None
            self.sampler.load_state_dict(self._state)
