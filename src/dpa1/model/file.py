"""The model file ``*.dpa1``: tensors plus a header with configuration, elements, levels, units and provenance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpa1.config.base import parse
from dpa1.config.model import ModelConfig
from dpa1.container import content_checksum, read_container, write_container
from dpa1.errors import UserError
from dpa1.model import replay
from dpa1.model.potential import Potential

FORMAT = 3  # the newest; 1: one fitting net for all levels of theory, 2: one for each, 3: with a replay set
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "virial": "eV, positive when the cell wants to expand"}
# version → function that turns (header, tensors) of that version into those of the next one.
UPGRADES: dict[
    int, Callable[[dict[str, Any], dict[str, torch.Tensor]], tuple[dict[str, Any], dict[str, torch.Tensor]]]
] = {1: lambda header, tensors: (header, tensors), 2: lambda header, tensors: (header, tensors)}


def version_of(potential: Potential) -> int:
    """The oldest version that can hold it, which is the one it is written in."""
    if potential.replay:
        return 3
    return 2 if potential.config.fitting_per_level else 1


def save_model(potential: Potential, path: str | Path) -> None:
    """Write ``potential`` (with ``potential.info`` as provenance) to ``path``, replacing it atomically."""
    version = version_of(potential)
    header = {
        "config": potential.config.model_dump(mode="json", exclude={"fitting_per_level"} if version == 1 else None),
        "levels": list(potential.levels),
        "precision": [_name(potential.dtype), _name(potential.fitting.output.weight.dtype)],
        "units": UNITS,
        "info": potential.info,
    }
    write_container(path, "model", version, header, {**potential.state_dict(), **replay.pack(potential)})


def digest_of(potential: Potential) -> str:
    """16 hexadecimal digits that tell a model from others: of its configuration, levels, tensors and replay set."""
    # Without defaults, as a later version has more options.
    config = potential.config.model_dump(mode="json", exclude_defaults=True)
    about = json.dumps([config, potential.levels], sort_keys=True)
    tensors = {**potential.state_dict(), **replay.pack(potential)}
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return content_checksum("model", FORMAT, about, cpu)[:16]


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Potential:
    """Read a ``*.dpa1`` file.

    Raises
    ------
    UserError
        when it is missing, no dpa1 model, truncated, damaged, or of a newer format; the sentence names the file.
    """
    version, header, tensors = read_container(path, "model", FORMAT)
    for step in range(version, FORMAT):
        header, tensors = UPGRADES[step](header, tensors)
    config = parse(ModelConfig, header["config"], str(path))
    potential = Potential(config, header["levels"])
    potential.set_precision(*header["precision"])
    potential.replay = replay.unpack(tensors, potential.levels)
    try:
        potential.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit its configuration; use another copy of the model") from error
    potential.info = header["info"]
    return potential.to(device).eval()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
