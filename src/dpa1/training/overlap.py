"""Frames that are in two parts of the data: the same structure, whatever its place, orientation, file or labels."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from dpa1.data.dataset import Dataset
from dpa1.errors import UserError
from dpa1.frames import Frame

TOLERANCE = 1e-3  # Å
SHOWN = 5


def check_overlap(train: Dataset, other: Dataset, name: str) -> None:
    """Refuse ``other`` data (``name``: test…) that hold structures of the training data.

    Raises
    ------
    UserError
        naming the first such frames.
    """
    found = overlap(train, other)
    if found:
        pairs = "; ".join(f"{other[b].name} = {train[a].name}" for a, b in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{len(found)} of {len(other)} {name} frames are training frames, too ({pairs}{more}), so their errors would "
            "say nothing about new structures; take them out of one of the two"
        )


def overlap(first: Dataset, second: Dataset) -> list[tuple[int, int]]:
    """(frame of ``first``, frame of ``second``) with the same atoms, in the same order, at the same places within 0.001 Å."""
    groups = defaultdict(list)
    compositions = {_composition(second, i) for i in range(len(second))}
    for i in range(len(first)):
        if _composition(first, i) in compositions:
            frame = first[i]
            groups[frame.numbers.tobytes()].append((i, *_fingerprint(frame)))
    found = []
    for k in range(len(second)):
        frame = second[k]
        own = groups.get(frame.numbers.tobytes())
        if not own:
            continue
        sums, shape = _fingerprint(frame)
        for i, theirs, other in own:
            if abs(theirs - sums) < TOLERANCE * np.sqrt(shape.size) and _same(shape, other):
                found.append((i, k))
                break
    return found


def _composition(dataset: Dataset, i: int) -> int:
    return int(dataset.table.n_atoms[i])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() < TOLERANCE)


def _fingerprint(frame: Frame) -> tuple[float, np.ndarray]:
    """Numbers (Å) that no shift and no rotation changes, and their root mean square, by which most pairs are told apart."""
    offset = frame.positions - frame.positions[0]
    if frame.pbc.all():
        lengths = np.linalg.norm(frame.cell, axis=1)
        # Angles instead of fractional coordinates: no jump where an atom is wrapped.
        phase = 2.0 * np.pi * np.linalg.solve(frame.cell.T, offset.T).T
        places = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * np.tile(lengths, 2) / (2.0 * np.pi)
        shape = np.concatenate([lengths, (frame.cell @ frame.cell.T / lengths[:, None]).ravel(), places.ravel()])
    else:
        centred = frame.positions - frame.positions.mean(0)
        last = frame.positions - frame.positions[-1]
        shape = np.concatenate([np.linalg.norm(v, axis=1) for v in (offset, centred, last)])
    return float(np.sqrt((shape**2).mean())), shape
