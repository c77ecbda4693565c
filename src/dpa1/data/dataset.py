"""Datasets: frames by number, from lists or packed stores, joined, split and subset, with a table of what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from dpa1.config.data import SourceConfig
from dpa1.data.labels import check_mapping
from dpa1.data.read import iter_source
from dpa1.data.report import LabelReport
from dpa1.data.resolve import resolve
from dpa1.data.store import Store
from dpa1.data.table import LABELS, FrameTable, table_of
from dpa1.errors import UserError
from dpa1.frames import Frame


class Dataset:
    """F frames with random access: ``len(d)``, ``d[i]`` → Frame, iteration.

    Attributes
    ----------
    table: per-frame columns, known without reading a frame.
    report: which files were read and which key was taken for which label.
    entries: names of the configuration's sources it was opened from.
    entry: (F,) int64, which of them each frame is from.
    """

    table: FrameTable
    report: LabelReport
    entries: tuple[str, ...] = ("data",)
    _entry: np.ndarray | None = None

    @property
    def entry(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64) if self._entry is None else self._entry

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Frame:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    def n_atoms(self, i: int) -> int:
        """Number of atoms of frame i."""
        return int(self.table.n_atoms[i])

    @property
    def sizes(self) -> np.ndarray:
        """(F,) number of atoms of each frame."""
        return self.table.n_atoms

    @property
    def elements(self) -> list[str]:
        """Symbols that occur, by atomic number."""
        return self.table.elements

    @property
    def sources(self) -> list[str]:
        """Files and systems the frames came from."""
        return list(self.table.sources)

    @property
    def coverage(self) -> dict[str, int]:
        """How many frames have an energy, forces, a virial, atomic energies."""
        return {label: int(self.table.has(label).sum()) for label in LABELS}

    def require(self, labels: Sequence[str]) -> None:
        """Check that each label is there in at least one frame.

        Raises
        ------
        UserError
            naming the label, what the frames do have, and the remedy.
        """
        coverage = self.coverage
        for label in labels:
            if not coverage[label]:
                have = ", ".join(name for name, n in coverage.items() if n) or "no labels"
                where = self.sources[0] if len(self.sources) == 1 else f"the {len(self.sources)} sources"
                keys = sorted(set().union(*(source.keys for source in self.report.sources)))
                there = f" (keys in the files: {', '.join(keys[:20])})" if keys else ""
                raise UserError(
                    f"{where}: no frame has {label}, which the loss asks for; the frames have {have}{there}: set the "
                    f"{label} weight of the loss to 0, or name the key with  data.labels: {{{label}: KEY}}"
                )

    def subset(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Some of the frames, in the order given, without copying them."""
        return _Subset(self, np.asarray(indices, dtype=np.int64))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(the rest, a random fraction), both at least one frame; of several sources the fraction of each.

        The same seed and data give the same split. Single atoms, and the last frame with some element at its level of
        theory, stay in the rest: the energy scale rests on them.

        Raises
        ------
        UserError
            when there are not two frames to part.
        """
        held = self.drawn(fraction, seed)
        return self.subset(np.setdiff1d(np.arange(len(self)), held)), self.subset(held)

    def drawn(self, fraction: float, seed: int) -> np.ndarray:
        """Sorted numbers of the frames that ``split`` holds out."""
        if len(self) < 2:
            raise UserError(f"cannot hold out a fraction of {len(self)} frame; give validation data, or more frames")
        order = np.random.default_rng([seed, 0x5B117]).permutation(len(self))
        candidates = order[self.sizes[order] > 1]
        if len(candidates) < 2:
            candidates = order
        held = np.zeros(len(self), dtype=bool)
        for number in range(len(self.entries)):
            own = candidates[self.entry[candidates] == number]
            n = min(max(1, round(fraction * (self.entry == number).sum())), len(own) - 1)
            held[own[: max(n, 0)]] = True
        if not held.any():
            held[candidates[0]] = True
        owner = self.table.owner()
        keys = self.table.z + len(chemical_symbols) * self.table.level[owner]
        for key in np.setdiff1d(keys, keys[~held[owner]]):
            if held.sum() > 1:
                held[owner[keys == key][0]] = False
        return np.flatnonzero(held)


class ListDataset(Dataset):
    """Frames kept in memory."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)
        self.table = table_of(self.frames)
        self.report = LabelReport()

    def __getitem__(self, i: int) -> Frame:
        return self.frames[i]


class StoreDataset(Dataset):
    """Frames streamed from a packed store; ``weight`` multiplies theirs, ``level`` replaces theirs when given."""

    def __init__(self, store: Store, weight: float = 1.0, level: str | None = None) -> None:
        self.store, self.weight, self.level = store, weight, level
        self.table = store.table if level is None else _relevel(store.table, level)
        self.report = LabelReport()

    def __getitem__(self, i: int) -> Frame:
        return _adjust(self.store[i], self.weight, self.level)


class ConcatDataset(Dataset):
    """One dataset after the other."""

    def __init__(self, parts: Sequence[Dataset], report: LabelReport | None = None) -> None:
        self.parts = list(parts)
        self.table = FrameTable.join([part.table for part in parts])
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.report = report or LabelReport([source for part in parts for source in part.report.sources])

    def __getitem__(self, i: int) -> Frame:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[part][i - int(self.starts[part])]


class _Subset(Dataset):
    def __init__(self, whole: Dataset, indices: np.ndarray) -> None:
        self.whole, self.indices = whole, indices
        self.entries, self._entry = whole.entries, whole.entry[indices]
        self.table, self.report = whole.table.take(indices), whole.report

    def __getitem__(self, i: int) -> Frame:
        return self.whole[int(self.indices[i])]


class LevelledDataset(Dataset):
    """All frames of another dataset, at one level of theory."""

    def __init__(self, whole: Dataset, level: str) -> None:
        self.whole, self.level = whole, level
        self.table, self.report = _relevel(whole.table, level), whole.report
        self.entries, self._entry = whole.entries, whole.entry

    def __getitem__(self, i: int) -> Frame:
        return _adjust(self.whole[i], 1.0, self.level)


def with_entry(dataset: Dataset, other: Dataset, name: str) -> Dataset:
    """``dataset`` followed by ``other`` as a further source of that name."""
    both = ConcatDataset([dataset, other], dataset.report)
    both.entries = (*dataset.entries, name)
    both._entry = np.concatenate([dataset.entry, np.full(len(other), len(dataset.entries))])
    return both


def _adjust(frame: Frame, weight: float, level: str | None) -> Frame:
    changes: dict[str, Any] = {}
    if weight != 1.0:
        changes["weight"] = frame.weight * weight
    if level is not None:
        changes["level"] = level
    return frame.replace(**changes) if changes else frame


def _relevel(table: FrameTable, level: str) -> FrameTable:
    columns = {name: getattr(table, name) for name in FrameTable.__dataclass_fields__}
    return FrameTable(**{**columns, "level": np.zeros(len(table), dtype=np.int64), "levels": (level,)})


Sources = str | os.PathLike[str] | SourceConfig | Sequence[str | os.PathLike[str] | SourceConfig]


def open_dataset(
    sources: Sources, labels: Mapping[Any, str] | None = None, type_map: Sequence[str] | None = None
) -> Dataset:
    """Open paths or source sections as one dataset: stores stay on disk, everything else is read into memory.

    Raises
    ------
    UserError
        as ``dpa1.read`` does.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike, SourceConfig)) else list(sources)
    if not given:
        raise UserError("no data given: name at least one file or folder")
    report = LabelReport()
    common = check_mapping(labels)
    parts: list[Dataset] = []
    frames: list[Frame] = []
    names: list[str] = []
    counts: list[int] = []
    for source in given:
        before = sum(map(len, parts)) + len(frames)
        config = (
            source if isinstance(source, SourceConfig) else SourceConfig.model_validate({"path": os.fspath(source)})
        )
        own = check_mapping(config.labels)
        explicit = tuple((dict(common) | dict(own)).items())
        symbols = config.type_map or (tuple(type_map) if type_map else None)
        since = len(report.sources)
        for found in resolve(config.path):
            if found.kind == "store":
                if frames:
                    parts.append(ListDataset(frames))
                    frames = []
                store = Store(found.path)
                store.describe(report.add(str(found.path), "packed store"))
                parts.append(StoreDataset(store, config.weight, config.level))
            else:
                read = iter_source(found, symbols, explicit, report)
                frames += [_adjust(frame, config.weight, config.level) for frame in read]
        report.require(own, since)
        name = config.name or config.path
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
        counts.append(sum(map(len, parts)) + len(frames) - before)
    if frames:
        parts.append(ListDataset(frames))
    report.require(tuple(pair for pair in common if not _overridden(pair[0], given)))
    dataset = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    dataset.report = report
    dataset.entries, dataset._entry = tuple(names), np.repeat(np.arange(len(names)), counts)
    return dataset


def _overridden(quantity: str, given: Sequence[Any]) -> bool:
    """Whether every source names this quantity itself."""
    return all(isinstance(source, SourceConfig) and quantity in source.labels for source in given)
