"""Errors per source and per level of theory: ``sources.csv`` along the run, a table and numbers at its end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.container import replace_file
from dpa1.data.dataset import Dataset
from dpa1.model.metrics import MEANS, means
from dpa1.training.distributed import World
from dpa1.units import TRAINED

COLUMNS = ("step", "part", "source", "level", "frames", *MEANS)
ALL = "all"  # the source of a row that sums over a level


class PerSource:
    """Sums the errors of a dataset's frames by source and level; every process its share.

    Parameters
    ----------
    levels: those of the potential; a frame that names none belongs to the only one.
    """

    def __init__(self, dataset: Dataset, levels: tuple[str, ...], device: torch.device) -> None:
        names = np.array([levels.index(name) if name in levels else 0 for name in dataset.table.levels] or [0])
        level = np.where(dataset.table.level < 0, 0, names[np.maximum(dataset.table.level, 0)])
        pairs, place = np.unique(np.stack([dataset.entry, level]), axis=1, return_inverse=True)
        self.place = torch.from_numpy(place.reshape(-1)).to(device)
        self.keys = [(dataset.entries[entry], levels[k]) for entry, k in pairs.T]
        self.frames = np.bincount(place.reshape(-1), minlength=len(self.keys))
        self.sums = torch.zeros(len(self.keys), 4, 3, dtype=torch.float64, device=device)

    def add(self, indices: np.ndarray, sums: Tensor) -> None:
        """``sums`` (C, 4, 3): ``metrics.frame_sums`` of the frames numbered ``indices`` (C,)."""
        self.sums.index_add_(0, self.place[torch.from_numpy(indices).to(self.place.device)], sums)

    def rows(self, world: World) -> list[dict[str, Any]]:
        """One row per source and level, then one per level where it has several sources; eV, Å, NaN without labels."""
        sums = world.add(self.sums.clone()).cpu()
        rows = [self._row(source, level, [k], sums) for k, (source, level) in enumerate(self.keys)]
        for level in dict.fromkeys(level for _, level in self.keys):
            chosen = [k for k, key in enumerate(self.keys) if key[1] == level]
            if len(chosen) > 1:
                rows.append(self._row(ALL, level, chosen, sums))
        return rows

    def _row(self, source: str, level: str, chosen: list[int], sums: Tensor) -> dict[str, Any]:
        frames = int(self.frames[chosen].sum())
        return {"source": source, "level": level, "frames": frames, **means(sums[chosen].sum(0))}


class SourceCsv:
    """``sources.csv``; rows beyond step ``after`` of an interrupted run are cut off."""

    def __init__(self, path: Path, after: int) -> None:
        kept: list[str] = []
        if after and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
            kept = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) <= after]
        replace_file(path, (",".join(COLUMNS) + "\n" + "".join(kept)).encode())
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore", lineterminator="\n")

    def write(self, step: int, part: str, rows: list[dict[str, Any]]) -> None:
        """The rows of one part of the data at one step."""
        for row in rows:
            shown = {key: "" if value != value else value for key, value in row.items()}
            self._writer.writerow({"step": step, "part": part, **shown})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def several(rows: list[dict[str, Any]]) -> bool:
    """Whether there is more to tell than the total."""
    return len(rows) > 1


def table(part: str, rows: list[dict[str, Any]]) -> str:
    """Plain text, meV and Å."""
    width = max(len(row["source"]) for row in rows)
    head = f"{part:<{width}}  {'level':<12}{'frames':>8}" + "".join(
        f"{quantity + ' ' + unit:>17}" for quantity, (_, unit) in TRAINED.items()
    )
    lines = [head, f"{'':<{width}}  {'':<12}{'':>8}" + f"{'RMSE    MAE':>17}" * len(TRAINED)]
    for row in rows:
        cells = "".join(f"{_cell(row, q, 'rmse') + _cell(row, q, 'mae'):>17}" for q in TRAINED)
        lines.append(f"{row['source']:<{width}}  {row['level']:<12}{row['frames']:>8}{cells}")
    return "\n".join(lines)


def _cell(row: dict[str, Any], quantity: str, kind: str) -> str:
    value = TRAINED[quantity][0] * row[f"{quantity}_{kind}"]
    return f"{'–':>8}" if value != value else f"{value:>8.4g}"
