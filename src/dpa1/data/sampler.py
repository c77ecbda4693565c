"""Which frames make which batch: seeded, filled to a budget, shared between processes, resumable."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dpa1.errors import UserError


@dataclass(frozen=True)
class Budget:
    """What fills a batch: at most ``value`` atoms, neighbour pairs or frames. A larger frame is a batch of its own."""

    kind: Literal["atoms", "pairs", "frames"]
    value: int

    def __post_init__(self) -> None:
        if self.value < 1:
            raise UserError(f"a batch of {self.value} {self.kind} holds nothing; give at least 1")


class Sampler:
    """An endless stream of batches, epoch after epoch; every frame once per epoch.

    The stream is a pure function of (costs, budget, seed). With W processes, step t takes batches tW … tW+W−1 of the one
    stream and each rank one of them, so together they see what one process with W batches per step sees, and all ranks
    take the same number of steps. The position is the state; it can be continued with another number of processes.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        budget: Budget,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        weights: np.ndarray | None = None,
    ) -> None:
        """``sizes``: (F,) cost of each frame in the unit of the budget: atoms, or pairs (``estimate_pairs``); ignored
        for frames. ``weights``: (F,) relative chances; an epoch then draws F frames with replacement."""
        if len(sizes) == 0:
            raise UserError("there is no frame to sample; give data that holds frames")
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} is not one of {world} processes")
        self._costs = (
            np.ones(len(sizes), dtype=np.int64) if budget.kind == "frames" else np.asarray(sizes, dtype=np.int64)
        )
        self.budget, self.seed, self.rank, self.world, self.shuffle = budget, seed, rank, world, shuffle
        self._chances = None if weights is None else _chances(weights, len(sizes))
        self.epoch = self.position = 0
        self._packed: dict[int, Batches] = {}

    def batches(self, epoch: int) -> Batches:
        """All batches of an epoch, a sequence of arrays of frame numbers, the same on every rank."""
        if epoch not in self._packed:
            # Two epochs at most: a step may reach into the next one.
            self._packed = {e: b for e, b in self._packed.items() if abs(e - epoch) == 1}
            self._packed[epoch] = self._pack(epoch)
        return self._packed[epoch]

    def _pack(self, epoch: int) -> Batches:
        random = np.random.default_rng([self.seed, epoch])
        n = len(self._costs)
        if self._chances is not None:
            order = random.choice(n, size=n, p=self._chances)
        else:
            order = random.permutation(n) if self.shuffle else np.arange(n)
        return pack(order, self._costs, self.budget.value)

    def next(self) -> np.ndarray:
        """This rank's batch of the next step."""
        epoch, position = self._ahead(self.rank)
        batch = self.batches(epoch)[position]
        self.epoch, self.position = self._ahead(self.world)
        return batch

    def _ahead(self, count: int) -> tuple[int, int]:
        epoch, position = self.epoch, self.position + count
        while position >= len(self.batches(epoch)):
            position -= len(self.batches(epoch))
            epoch += 1
        return epoch, position

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON-able numbers, the same on every rank, with what the stream depends on."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "frames": len(self._costs),
            "cost": int(self._costs.sum()),
            "budget": [self.budget.kind, self.budget.value],
            "shuffle": self.shuffle,
            **({} if self._chances is None else {"shares": hashlib.sha256(self._chances.tobytes()).hexdigest()[:16]}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises
        ------
        UserError
            when data, seed or budget are not those of the state: the stream would be another.
        """
        now = self._identity()
        for key in dict.fromkeys([*now, *(key for key in state if key not in ("epoch", "position"))]):
            value = now.get(key)
            if state.get(key) != value:
                raise UserError(
                    f"cannot continue the data stream: {key} was {state.get(key)} and is now {value}; "
                    "continue with the same data and settings, or start a new run"
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


class Batches(Sequence[np.ndarray]):
    """``order`` cut at ``ends``; the pieces are made when asked for, since an epoch may have 10⁶ of them."""

    def __init__(self, order: np.ndarray, ends: list[int]) -> None:
        self.order, self._bounds = order, [0, *ends]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.order[self._bounds[i] : self._bounds[i + 1]]


def pack(order: np.ndarray, costs: np.ndarray, budget: int) -> Batches:
    """Cut ``order`` into consecutive pieces whose costs sum to at most ``budget`` (or are one frame)."""
    total = np.cumsum(costs[order]).tolist()
    ends, start, before, n = [], 0, 0, len(total)
    while start < n:
        start = max(bisect_right(total, before + budget, start), start + 1)
        before = total[start - 1]
        ends.append(start)
    return Batches(order, ends)


def evaluation_batches(sizes: np.ndarray, budget: Budget, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """This rank's share of all frames, each exactly once over all ranks, in batches; no rank waits for another.

    Frames are taken in order; rank r gets batches r, r+W, r+2W … and may have one fewer than others.
    """
    costs = np.ones(len(sizes), dtype=np.int64) if budget.kind == "frames" else np.asarray(sizes, dtype=np.int64)
    return pack(np.arange(len(costs)), costs, budget.value)[rank::world] if len(costs) else []


def estimate_pairs(n_atoms: np.ndarray, volume: np.ndarray, cutoff: float) -> np.ndarray:
    """(F,) expected neighbour pairs: from the density where the frame is periodic, else all pairs up to 60 per atom."""
    n = np.asarray(n_atoms, dtype=np.float64)
    sphere = 4.0 / 3.0 * np.pi * cutoff**3
    with np.errstate(divide="ignore", invalid="ignore"):
        dense = n * n * sphere / volume
    return np.maximum(1, np.where(np.asarray(volume) > 0, dense, n * np.minimum(n - 1, 60))).astype(np.int64)


def _chances(weights: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    chances = np.asarray(weights, dtype=np.float64)
    if chances.shape != (n,) or not np.isfinite(chances).all() or chances.min() < 0 or chances.sum() <= 0:
        raise UserError(f"sampling weights must be {n} numbers ≥ 0 that are not all zero")
    return chances / chances.sum()
