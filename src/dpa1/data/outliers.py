"""Outliers: frames whose largest force, or distance from the composition fit of their level, is beyond a given limit."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpa1.data.composition import fit_composition
from dpa1.data.dataset import Dataset
from dpa1.data.table import FrameTable
from dpa1.errors import UserError


@dataclass(frozen=True)
class Dropped:
    """One frame left out: where it is from, and which ``value`` of ``quantity`` is beyond ``limit``."""

    source: str
    file: str
    frame: int
    quantity: str
    value: float
    limit: float
    unit: str


def drop_outliers(
    dataset: Dataset, max_force: float | None, max_residual: float | None
) -> tuple[Dataset, list[Dropped]]:
    """The frames within both limits, and what was left out. Without limits nothing is.

    Parameters
    ----------
    max_force: eV/Å, length of the force on an atom.
    max_residual: eV/atom, |energy − composition fit| per atom. The fit is that of the frame's level of theory, repeated
        without the farthest frames until all that are left are within the limit, so that outliers do not bend it; then
        with those that are within the limit of that fit.

    Raises
    ------
    UserError
        when no frame is left.
    """
    dropped: list[Dropped] = []
    keep = np.ones(len(dataset), dtype=bool)
    if max_force is not None:
        for i, value in _largest_forces(dataset):
            if value > max_force:
                keep[i] = False
                dropped.append(_entry(dataset, i, "force", value, max_force, "eV/Å"))
    if max_residual is not None:
        for level in np.unique(dataset.table.level):
            places = np.flatnonzero(keep & (dataset.table.level == level) & np.isfinite(dataset.table.energy))
            for i, value in _residuals(dataset, places, max_residual):
                keep[i] = False
                dropped.append(_entry(dataset, i, "energy from the composition fit", value, max_residual, "eV/atom"))
    if not keep.any():
        limits = [
            f"max_force {max_force:g} eV/Å" if max_force else "",
            f"max_residual {max_residual:g} eV/atom" if max_residual else "",
        ]
        raise UserError(f"no training frame is within {' and '.join(filter(None, limits))}; raise the limit")
    return (dataset.subset(np.flatnonzero(keep)), dropped) if dropped else (dataset, [])


def _largest_forces(dataset: Dataset) -> Iterator[tuple[int, float]]:
    for i in np.flatnonzero(dataset.table.has("forces")):
        forces = dataset[int(i)].forces
        assert forces is not None
        yield int(i), float(np.sqrt((forces**2).sum(1).max()))


def _residuals(dataset: Dataset, places: np.ndarray, limit: float) -> list[tuple[int, float]]:
    """(frame, signed residual) of the frames beyond ``limit`` of the fit to the others.

    An early fit that outliers bend may drop good frames; those come back until the fit has room for no more.
    """
    table = dataset.table.take(places)
    residuals = np.zeros(len(table))
    keep = _within(table, np.ones(len(table), dtype=bool), residuals, limit)
    while keep.any() and not keep.all():
        near = _judge(table, keep, residuals, limit)
        values = residuals.copy()
        grown = _within(table, keep | near, values, limit)
        if grown.sum() <= keep.sum():
            break
        keep, residuals = grown, values
    return [(int(places[k]), float(residuals[k])) for k in np.flatnonzero(~keep)]


def _judge(table: FrameTable, keep: np.ndarray, residuals: np.ndarray, limit: float) -> np.ndarray:
    """(F,) which frames outside ``keep`` are within the limit of its fit; sets the ``residuals`` of those it can judge.

    An element that only frames outside hold counts with the mean energy per atom. That may show which of the few frames
    that hold it is right, but is no residual to report.
    """
    places, kept = np.flatnonzero(~keep), table.take(np.flatnonzero(keep))
    out = table.take(places)
    strange = ~np.isin(out.z, kept.z)
    unknown = np.bincount(out.owner(), weights=strange * out.count, minlength=len(out)) / out.n_atoms
    fit = fit_composition(kept, table.elements)
    found = fit.residuals(out) - unknown * (kept.energy / kept.n_atoms).mean()
    known = unknown == 0
    residuals[places[known]] = found[known]
    near = np.zeros(len(table), dtype=bool)
    near[places] = np.abs(found) <= limit
    return near


def _within(table: FrameTable, keep: np.ndarray, residuals: np.ndarray, limit: float) -> np.ndarray:
    """(F,) which of the frames in ``keep`` are within the limit of their own fit; ``residuals`` of the others are set."""
    keep = keep.copy()
    while keep.any():
        places = np.flatnonzero(keep)
        kept = table.take(places)
        found = fit_composition(kept).residuals(kept)
        size = np.abs(found)
        # Only the farthest at once: the others may lie within the limit of the fit without these.
        beyond = (size > limit) & (size >= 0.5 * size.max())
        if not beyond.any():
            break
        residuals[places[beyond]] = found[beyond]
        keep[places[beyond]] = False
    return keep


def _entry(dataset: Dataset, i: int, quantity: str, value: float, limit: float, unit: str) -> Dropped:
    frame = dataset[i]
    return Dropped(dataset.entries[int(dataset.entry[i])], frame.source, frame.index, quantity, value, limit, unit)


def dropped_csv(dropped: Sequence[Dropped]) -> str:
    """``dropped.csv``: one line per frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "file", "frame", "quantity", "value", "limit", "unit"])
    for d in dropped:
        writer.writerow([d.source, d.file, d.frame, d.quantity, f"{d.value:.6g}", f"{d.limit:g}", d.unit])
    return text.getvalue()


def summary(dropped: Sequence[Dropped]) -> str:
    """What was left out, per source and reason."""
    counts = Counter((d.source, f"{d.quantity} beyond {d.limit:g} {d.unit}") for d in dropped)
    lines = [f"outliers: {len(dropped)} frames named for training are left out, listed in dropped.csv"]
    return "\n".join([*lines, *(f"  {source}: {n} ({reason})" for (source, reason), n in counts.items())])
