"""The replay set: a few labelled frames that travel inside a model file, so that forgetting can be measured and prevented.

Positions, cells, forces and virials are kept as float32, which is far finer than any label is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.errors import UserError
from dpa1.frames import Frame, make_frame
from dpa1.model.potential import Potential

PREFIX = "replay/"
LABELS = ("energy", "forces", "virial")
SOURCE = "replay set"


def attach_replay(potential: Potential, frames: Sequence[Frame]) -> None:
    """Give ``potential`` its replay set; ``save_model`` writes it, ``load_model`` brings it back as ``potential.replay``.

    frames: with the labels they were trained on, each at its level of theory (not needed where there is only one).

    Raises
    ------
    UserError
        for a frame without labels, of a level or with an element that the potential does not have.
    """
    kept = []
    for frame in frames:
        if frame.energy is None and frame.forces is None:
            raise UserError(f"{frame.name}: has neither energy nor forces; leave it out of the replay set")
        potential.types(torch.from_numpy(frame.numbers))
        level = frame.level if len(potential.levels) > 1 else potential.levels[0]
        potential.level_index(level)
        kept.append(replace(frame, level=level, atomic_energies=None, weight=1.0))
    potential.replay = tuple(kept)


def pack(potential: Potential) -> dict[str, Tensor]:
    """The replay set as tensors, named under ``replay/``; nothing without one."""
    frames = potential.replay
    if not frames:
        return {}
    zero = np.zeros((3, 3))
    mask = [sum(1 << k for k, name in enumerate(LABELS) if getattr(f, name) is not None) for f in frames]
    arrays = {
        "numbers": np.concatenate([f.numbers for f in frames]).astype(np.uint8),
        "n_atoms": np.array([len(f) for f in frames], dtype=np.int32),
        "positions": np.concatenate([f.positions for f in frames]).astype(np.float32),
        "cell": np.stack([f.cell for f in frames]).astype(np.float32),
        "pbc": np.stack([f.pbc for f in frames]).astype(np.uint8),
        "labels": np.array(mask, dtype=np.uint8),
        "energy": np.array([0.0 if f.energy is None else f.energy for f in frames]),
        "forces": np.concatenate([np.zeros((len(f), 3)) if f.forces is None else f.forces for f in frames]).astype(
            np.float32
        ),
        "virial": np.stack([zero if f.virial is None else f.virial for f in frames]).astype(np.float32),
        "level": np.array([potential.levels.index(f.level or potential.levels[0]) for f in frames], dtype=np.uint8),
    }
    return {PREFIX + name: torch.from_numpy(array) for name, array in arrays.items()}


def unpack(tensors: dict[str, Tensor], levels: Sequence[str]) -> tuple[Frame, ...]:
    """The frames of ``pack``, which are taken out of ``tensors``."""
    own = {key.removeprefix(PREFIX): tensors.pop(key).numpy() for key in list(tensors) if key.startswith(PREFIX)}
    if not own:
        return ()
    frames, start = [], 0
    for k, n in enumerate(own["n_atoms"].tolist()):
        atoms = slice(start, start + n)
        values: dict[str, Any] = {
            "energy": own["energy"][k],
            "forces": own["forces"][atoms],
            "virial": own["virial"][k],
        }
        labels = {name: values[name] for bit, name in enumerate(LABELS) if own["labels"][k] >> bit & 1}
        frames.append(
            make_frame(
                own["numbers"][atoms], own["positions"][atoms], own["cell"][k], own["pbc"][k].astype(bool),
                source=SOURCE, index=k, level=levels[own["level"][k]], **labels,
            )
        )  # fmt: skip
        start += n
    return tuple(frames)
