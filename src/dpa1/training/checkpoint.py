"""Checkpoints: the whole state of a run in one file that is complete and checked, or does not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dpa1.container import read_container, write_container
from dpa1.errors import UserError

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.ckpt")


def write_checkpoint(
    folder: Path, step: int, header: dict[str, Any], tensors: dict[str, dict[str, Tensor]], keep: int
) -> Path:
    """Write ``folder/step-N.ckpt`` and then remove all but the newest ``keep``. ``tensors`` is grouped by owner."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:09d}.ckpt"
    flat = {f"{group}/{name}": tensor for group, entries in tensors.items() for name, tensor in entries.items()}
    write_container(path, "checkpoint", FORMAT, {"step": step, **header}, flat)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """(header, tensors grouped by owner).

    Raises
    ------
    UserError
        when the file is no checkpoint, truncated, damaged or newer than this program.
    """
    _, header, flat = read_container(path, "checkpoint", FORMAT)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return header, groups


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def last_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, by its name."""
    found = checkpoints(folder)
    return int(found[-1].name[5:-5]) if found else None


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or ``None`` when the run had not come to write one.

    Raises
    ------
    UserError
        when that file is damaged; the sentence names the one before it, if there is one.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        read_container(found[-1], "checkpoint", FORMAT)
    except UserError as error:
        older = f"; remove it to continue from {found[-2].name}" if len(found) > 1 else "; start the run anew"
        raise UserError(f"{error}{older}") from None
    return found[-1]


def remove_halves(folder: Path) -> None:
    """Remove the half-written files a killed process left behind."""
    for part in [*folder.glob(".*.part"), *(folder / "checkpoints").glob(".*.part")]:
        part.unlink(missing_ok=True)
