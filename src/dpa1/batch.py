"""Batch: any number of frames and their neighbours as tensors. A batch of one and of many are the same type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.errors import UserError
from dpa1.frames import Frame
from dpa1.kernels import openblas
from dpa1.neighbors import Neighbors, find_neighbors, pieces
from dpa1.neighbors_device import find_on_device

LARGE = 2000  # atoms of a frame from which on a search on a GPU is worth its launches
SHARED_SEARCH = 100  # atoms of a frame from which threads share its search


@dataclass(frozen=True, eq=False)
class Batch:
    """F frames, N atoms in all, P ordered neighbour pairs in all.

    Attributes
    ----------
    numbers: (N,) int64 atomic numbers.
    positions: (N, 3) Å float64.
    cell: (F, 3, 3) Å float64.
    frame: (N,) int64, which frame each atom belongs to.
    n_atoms: (F,) int64.
    centre, neighbor: (P,) int64 atom indices, sorted by centre.
    shift: (P, 3) Å float64 Cartesian image offset: pair vector = x[neighbor] − x[centre] + shift.
    energy: (F,) eV; forces: (N, 3) eV/Å; virial: (F, 3, 3) eV; float64, NaN where a frame lacks the label.
    weight: (F,) loss weights.
    names: how messages name each frame.
    level: (F,) int64, which of a potential's levels of theory each frame belongs to; None when that is not said.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    frame: Tensor
    n_atoms: Tensor
    centre: Tensor
    neighbor: Tensor
    shift: Tensor
    energy: Tensor
    forces: Tensor
    virial: Tensor
    weight: Tensor
    names: tuple[str, ...] = ()
    level: Tensor | None = None

    def __len__(self) -> int:
        return len(self.n_atoms)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def differentiable(self) -> Batch:
        """The same batch, also where it was made in torch's inference mode; to be called outside of it."""
        return self._mapped(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def make_batch(
    frames: Sequence[Frame],
    cutoff: float,
    neighbors: Sequence[Neighbors] | None = None,
    levels: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Batch:
    """Collate frames; neighbour lists are built here unless given (one per frame, same cutoff).

    ``levels``: those of the potential, where the frames' own are to be used. ``device``: where the batch is to be; on a GPU
    the neighbours of large frames are searched for there.

    Raises
    ------
    UserError
        when there are several levels and a frame's is none of them.
    """
    place = torch.device(device)
    sizes = np.array([len(frame) for frame in frames])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    if neighbors is None and place.type != "cpu" and sizes.max() >= LARGE:
        pairs = _pairs_on_device(frames, cutoff, starts, place)
    else:
        if neighbors is None:
            neighbors = [find_neighbors(frame, cutoff, _threads(frame)) for frame in frames]
        pairs = _pairs(frames, neighbors, starts)
    nan_virial, nan = np.full((3, 3), np.nan), float("nan")

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    batch = Batch(
        numbers=tensor([f.numbers for f in frames]),
        positions=tensor([f.positions for f in frames]),
        cell=torch.from_numpy(np.stack([f.cell for f in frames])),
        frame=torch.from_numpy(np.repeat(np.arange(len(frames)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        centre=pairs[0],
        neighbor=pairs[1],
        shift=pairs[2],
        energy=torch.tensor([nan if f.energy is None else f.energy for f in frames], dtype=torch.float64),
        forces=tensor([np.full((len(f), 3), np.nan) if f.forces is None else f.forces for f in frames]),
        virial=torch.from_numpy(np.stack([nan_virial if f.virial is None else f.virial for f in frames])),
        weight=torch.tensor([f.weight for f in frames], dtype=torch.float64),
        names=tuple(f.name for f in frames),
        level=torch.tensor([level_index(f, levels) for f in frames]) if levels else None,
    )
    return batch if place.type == "cpu" else batch.to(place)


def _threads(frame: Frame) -> int:
    """Of the search: for few atoms, waking threads and waiting for them costs more than they bring."""
    return torch.get_num_threads() if len(frame) >= SHARED_SEARCH else 1


def _pairs(frames: Sequence[Frame], neighbors: Sequence[Neighbors], starts: np.ndarray) -> tuple[Tensor, ...]:
    """Centre, neighbor and shift (Å) of all frames, whose atoms begin at ``starts``."""

    def joined(parts: list[np.ndarray]) -> Tensor:
        # A large frame comes alone: it is not copied.
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def index(parts: list[np.ndarray]) -> Tensor:
        return joined([part + start if start else part for part, start in zip(parts, starts, strict=True)])

    with openblas.alone():
        shift = joined([_cartesian(n.shift, f.cell) for n, f in zip(neighbors, frames, strict=True)])
    return index([n.centre for n in neighbors]), index([n.neighbor for n in neighbors]), shift


def _cartesian(shift: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(P, 3) Å of integer cell offsets."""
    found = np.empty(shift.shape)
    for some in pieces(len(shift)):
        np.matmul(shift[some], cell, out=found[some])
    return found


def _pairs_on_device(
    frames: Sequence[Frame], cutoff: float, starts: np.ndarray, device: torch.device
) -> tuple[Tensor, ...]:
    """The same, searched for where they are needed."""
    parts = []
    for frame, start in zip(frames, starts.tolist(), strict=True):
        centre, neighbor, shift = find_on_device(frame, cutoff, device)
        parts.append((centre + start, neighbor + start, shift @ torch.from_numpy(frame.cell).to(device)))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def level_index(frame: Frame, levels: Sequence[str]) -> int:
    """Which of a potential's levels of theory a frame belongs to; with a single one it is that.

    Raises
    ------
    UserError
        naming the frame and the levels there are.
    """
    if len(levels) == 1:
        return 0
    if frame.level not in levels:
        said = "is not given" if frame.level is None else f"is {frame.level}"
        raise UserError(
            f"{frame.name}: its level of theory {said}, the model holds {', '.join(levels)}; name one of them"
        )
    return levels.index(frame.level)
