"""Batches for the loop: endless and seeded for training, each frame once for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpa1.batch import Batch, make_batch
from dpa1.frames import Frame
from dpa1.neighbors import Neighbors, find_neighbors


class Feed:
    """Stand-in."""

    def __init__(
        self, dataset: Sequence[Frame], cutoff: float, budget: tuple[str, int], seed: int, rank: int, size: int
    ) -> None:
        self.dataset, self.cutoff, self.budget, self.seed = dataset, cutoff, budget, seed
        self.rank, self.size = rank, size
        self.epoch = self.position = 0
        self._neighbors: dict[int, Neighbors] = {}
        self._batches: tuple[int, list[list[int]]] = (-1, [])

    @property
    def epochs(self) -> float:
        return self.epoch + self.position / len(self._of(self.epoch))

    def _of(self, epoch: int) -> list[list[int]]:
        if self._batches[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
            self._batches = (epoch, self._fill(order.tolist()))
        return self._batches[1]

    def _fill(self, order: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        filled = float("inf")
        kind, limit = self.budget
        for i in order:
            cost = 1 if kind == "frames" else len(self.dataset[i])
            if filled + cost > limit:
                batches.append([])
                filled = 0
            batches[-1].append(i)
            filled += cost
        return batches

    def __next__(self) -> tuple[list[int], Batch]:
        chosen: list[int] = []
        for turn in range(self.size):
            batches = self._of(self.epoch)
            if turn == self.rank:
                chosen = batches[self.position]
            self.position += 1
            if self.position == len(batches):
                self.epoch, self.position = self.epoch + 1, 0
        return chosen, self._batch(chosen)

    def once(self) -> Iterator[Batch]:
        for chosen in self._fill(list(range(len(self.dataset))))[self.rank :: self.size]:
            yield self._batch(chosen)

    def _batch(self, chosen: list[int]) -> Batch:
        frames = [self.dataset[i] for i in chosen]
        for i, frame in zip(chosen, frames, strict=True):
            if i not in self._neighbors:
                self._neighbors[i] = find_neighbors(frame, self.cutoff)
        return make_batch(frames, self.cutoff, [self._neighbors[i] for i in chosen])

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
