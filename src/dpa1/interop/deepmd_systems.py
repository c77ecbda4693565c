"""The data of a DeePMD-kit ``input.json``: where its systems are, and what their batches and probabilities mean here."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpa1.errors import UserError


def located(systems: Any, patterns: Any, folder: Path, where: str) -> list[str]:
    """Paths of the systems; each is looked up in the current folder, then in ``folder``.

    One path means everything below it, or what ``patterns`` find below it.
    """
    given = [systems] if isinstance(systems, str) else systems
    if not isinstance(given, list) or not given or not all(isinstance(s, str) for s in given):
        raise UserError(f"{where}: 'systems' must be a path or a list of paths")
    paths = [_beside(text, folder) for text in given]
    if patterns is None or not isinstance(systems, str):
        return paths
    found = sorted({str(m.parent if m.name == "type.raw" else m) for p in patterns for m in Path(paths[0]).rglob(p)})
    found = [path for path in found if (Path(path) / "type.raw").exists()]
    if not found:
        raise UserError(f"{where}: 'rglob_patterns' {patterns} find no system below {paths[0]}")
    return found


def _beside(text: str, folder: Path) -> str:
    file, mark, group = os.path.expanduser(text).partition("#")
    if not Path(file).exists() and (folder / file).exists():
        file = str(folder / file)
    return file + mark + group


def batch_budget(data: dict[str, Any], where: str) -> tuple[dict[str, int], str | None]:
    """The batch budget of our training section, and a note where it differs from DeePMD-kit's."""
    size = data["batch_size"]
    if isinstance(size, list) and size and all(isinstance(n, int) and n > 0 for n in size):
        frames = max(1, round(sum(size) / len(size)))
        note = None if len(set(size)) == 1 else f"batch_size: {frames} frames in every batch, the mean of {size}"
        return {"batch_frames": frames}, note
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return {"batch_frames": size}, None
    rule, _, number = str(size).partition(":")
    try:
        atoms = int(number or 32) if rule == "auto" or number else 0
    except ValueError:
        atoms = 0
    if rule not in ("auto", "max", "filter") or atoms < 1:
        raise UserError(
            f"{where}: 'batch_size' must be a number, a list of them, auto[:N], max:N or filter:N (given: {size!r})"
        )
    if rule == "filter":
        data["systems"] = _small_enough(data["systems"], atoms, where)
    note = f"batch_size: each batch is filled with frames up to {atoms} atoms, across systems"
    return {"batch_atoms": atoms}, note


def _small_enough(systems: Sequence[str], atoms: int, where: str) -> list[str]:
    kept = [path for path in systems if max(_open(path, None).sizes) <= atoms]
    if not kept:
        raise UserError(f"{where}: 'batch_size: filter:{atoms}' leaves no system; every one has more atoms")
    return kept


def weighted_sources(data: dict[str, Any], where: str, type_map: Sequence[str] | None) -> list[dict[str, Any]]:
    """Data sections. DeePMD-kit's chances of systems become weights in the loss, which has the same expectation."""
    systems = data["systems"]
    plain = [{"path": system} for system in systems]
    rule, probabilities = data["auto_prob"], data["sys_probs"]
    blocks = str(rule).split(";")
    if len(systems) == 1 or (probabilities is None and rule == "prob_sys_size"):
        return plain
    counts = np.array([len(_open(system, type_map)) for system in systems], dtype=float)
    if probabilities is not None:
        chances = _explicit(probabilities, counts, where)
    elif rule == "prob_uniform":
        chances = np.full(len(systems), 1.0 / len(systems))
    elif blocks[0] == "prob_sys_size" and len(blocks) > 1:
        chances = _blocks(blocks[1:], counts, where)
    else:
        raise UserError(
            f"{where}: 'auto_prob' must be prob_sys_size, prob_uniform or prob_sys_size;a:b:w;… (given: {rule!r})"
        )
    weights = chances * counts.sum() / counts
    return [{**section, "weight": float(w)} for section, w in zip(plain, weights, strict=True) if w > 0]


def _explicit(probabilities: Sequence[float], counts: np.ndarray, where: str) -> np.ndarray:
    given = np.array(probabilities, dtype=float)
    if given.shape != counts.shape:
        raise UserError(f"{where}: 'sys_probs' has {given.size} values for {len(counts)} systems")
    left = 1.0 - given[given >= 0].sum()
    free = given < 0
    if left < -1e-9 or (not free.any() and abs(left) > 1e-6):
        raise UserError(f"{where}: 'sys_probs' must add up to 1")
    return np.where(free, left * counts / max(counts[free].sum(), 1.0), given)


def _blocks(blocks: Sequence[str], counts: np.ndarray, where: str) -> np.ndarray:
    chances = np.zeros(len(counts))
    try:
        for block in blocks:
            first, last, weight = block.split(":")
            part = slice(int(first), int(last))
            chances[part] = float(weight) * counts[part] / counts[part].sum()
        return chances / chances.sum()
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{where}: 'auto_prob' blocks must look like  prob_sys_size;0:2:0.5;2:5:0.5") from None


def measured_sel(systems: Sequence[str], cutoff: float, rule: str, type_map: Sequence[str], where: str) -> int:
    """DeePMD-kit's ``sel: auto[:f]``: the largest neighbour number times f, rounded up to a multiple of 4."""
    from dpa1.data.read import iter_frames
    from dpa1.neighbors import find_neighbors

    try:
        factor = float(rule.partition(":")[2] or 1.1)
    except ValueError:
        raise UserError(f"{where}: 'descriptor.sel: {rule}' must be auto or auto:factor") from None
    most = 0
    for frame in iter_frames(list(systems), type_map=type_map):
        centre = find_neighbors(frame, cutoff).centre
        most = max(most, int(np.bincount(centre, minlength=1).max()))
    return max(4, math.ceil(int(most * factor) / 4) * 4)


def _open(path: str, type_map: Sequence[str] | None) -> Any:
    from dpa1.data.dataset import open_dataset

    return open_dataset([path], None, type_map)
