"""FrameTable: what is known of every frame without reading it – sizes, labels, energies, compositions, origins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from dpa1.frames import Frame

# One bit per label; written into stores, so the order is fixed.
LABELS = ("energy", "forces", "virial", "atomic_energies")
Formula = tuple[bytes, bytes]  # elements and how many of each; to compare, not to read


def mask_of(frame: Frame) -> int:
    """The labels of a frame as bits."""
    return sum(1 << bit for bit, label in enumerate(LABELS) if getattr(frame, label) is not None)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Columns over F frames.

    Attributes
    ----------
    n_atoms: (F,) int64.  mask: (F,) uint8 label bits.  energy: (F,) eV, NaN where absent.
    volume: (F,) Å³, 0 where not periodic in all three directions.
    kinds: (F,) int64 number of distinct elements; z, count: (sum of kinds,) the atomic numbers and how many atoms of each.
    source, level: (F,) int64 positions in ``sources`` and ``levels`` (level −1: not given).
    """

    n_atoms: np.ndarray
    mask: np.ndarray
    energy: np.ndarray
    volume: np.ndarray
    kinds: np.ndarray
    z: np.ndarray
    count: np.ndarray
    source: np.ndarray
    level: np.ndarray
    sources: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def elements(self) -> list[str]:
        """The symbols that occur, by atomic number."""
        return [chemical_symbols[z] for z in np.unique(self.z)]

    def has(self, label: str) -> np.ndarray:
        """(F,) bool: which frames carry a label."""
        return (self.mask >> LABELS.index(label)) & 1 == 1

    def owner(self) -> np.ndarray:
        """(sum of kinds,) the frame each (z, count) entry belongs to."""
        return np.repeat(np.arange(len(self)), self.kinds)

    def formulas(self) -> Iterator[tuple[Formula, int]]:
        """Per frame: reduced formula, and how often the frame holds it."""
        ends = np.cumsum(self.kinds)
        for start, end in zip(ends - self.kinds, ends, strict=True):
            count = self.count[start:end]
            units = int(np.gcd.reduce(count))
            yield (self.z[start:end].tobytes(), (count // units).tobytes()), units

    def take(self, indices: np.ndarray) -> FrameTable:
        """The table of some frames, in the order given."""
        starts = np.concatenate([[0], np.cumsum(self.kinds)])
        kinds = self.kinds[indices]
        within = np.arange(kinds.sum()) - np.repeat(np.cumsum(kinds) - kinds, kinds)
        entries = np.repeat(starts[:-1][indices], kinds) + within
        return FrameTable(
            self.n_atoms[indices], self.mask[indices], self.energy[indices], self.volume[indices], kinds,
            self.z[entries], self.count[entries], self.source[indices], self.level[indices], self.sources, self.levels,
        )  # fmt: skip

    @staticmethod
    def join(tables: Sequence[FrameTable]) -> FrameTable:
        """One table after the other."""
        sources = tuple(dict.fromkeys(s for t in tables for s in t.sources))
        levels = tuple(dict.fromkeys(v for t in tables for v in t.levels))

        def renumbered(values: np.ndarray, names: tuple[str, ...], common: tuple[str, ...]) -> np.ndarray:
            position = {name: i for i, name in enumerate(common)}
            lookup = np.array([position[name] for name in names] + [-1], dtype=np.int64)
            return lookup[values]

        columns = {
            f.name: np.concatenate([getattr(t, f.name) for t in tables])
            for f in fields(FrameTable)
            if f.name not in ("source", "level", "sources", "levels")
        }
        source = np.concatenate([renumbered(t.source, t.sources, sources) for t in tables])
        level = np.concatenate([renumbered(t.level, t.levels, levels) for t in tables])
        return FrameTable(**columns, source=source, level=level, sources=sources, levels=levels)


class TableBuilder:
    """Collects the columns of a FrameTable frame by frame, in compact arrays."""

    def __init__(self) -> None:
        from array import array

        kinds = {name: "d" if name in ("energy", "volume") else "q" for name in _COLUMNS}
        self.columns: dict[str, Any] = {name: array(kind) for name, kind in kinds.items()}
        self.sources: dict[str, int] = {}
        self.levels: dict[str, int] = {}

    def add(self, frame: Frame) -> None:
        """Append one frame."""
        z, count = np.unique(frame.numbers, return_counts=True)
        columns = self.columns
        columns["n_atoms"].append(len(frame))
        columns["mask"].append(mask_of(frame))
        columns["energy"].append(float("nan") if frame.energy is None else frame.energy)
        columns["volume"].append(frame.volume if frame.pbc.all() else 0.0)
        columns["kinds"].append(len(z))
        columns["z"].extend(z.tolist())
        columns["count"].extend(count.tolist())
        columns["source"].append(self.sources.setdefault(frame.source, len(self.sources)))
        columns["level"].append(-1 if frame.level is None else self.levels.setdefault(frame.level, len(self.levels)))

    def build(self) -> FrameTable:
        """The finished table."""
        arrays = {
            name: np.array(values, dtype=np.float64 if values.typecode == "d" else np.int64)
            for name, values in self.columns.items()
        }
        arrays["mask"] = arrays["mask"].astype(np.uint8)
        return FrameTable(**arrays, sources=tuple(self.sources), levels=tuple(self.levels))


_COLUMNS = ("n_atoms", "mask", "energy", "volume", "kinds", "z", "count", "source", "level")


def table_of(frames: Iterable[Frame]) -> FrameTable:
    """The table of frames at hand."""
    builder = TableBuilder()
    for frame in frames:
        builder.add(frame)
    return builder.build()
