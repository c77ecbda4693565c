"""Building tables: knots as dense as the bound on forces asks for, measured against the networks in float64."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpa1.batch import Batch, make_batch
from dpa1.errors import RunError
from dpa1.kernels import table as kernel
from dpa1.model import memory
from dpa1.model.table import TableGrid, TableReport, Tables, TableSet
from dpa1.model.table_samples import sample_structures
from dpa1.model.table_solve import (
    LEVELS,
    Block,
    Errors,
    finest,
    grid_of,
    layout,
    levels_of,
    measure,
    radial_entry,
    solve,
    steepness_of,
    widths,
)

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

SAFETY = 4.0  # the bound divided by the largest error allowed on the sample structures
AIM = 0.5  # of that, where knots are brought closer
MAX_STEP = 12  # levels at once
HELPS = 0.7  # where closer knots leave more of a slope error than this, they do not help any more
REMEDY = "use the model without tables, or for fewer elements"
SMALLEST = 1e-15  # slope errors below are rounding


def build(
    potential: Potential, wanted: Sequence[int], old: TableSet | None, max_force_error: float, max_bytes: int
) -> tuple[TableSet, TableReport]:
    """Tables for all ordered pairs of the ``wanted`` elements (indices), beside those of ``old`` tables where there are any.

    ``old`` are in the potential's precision and on its device. Their pairs are kept while ``max_bytes`` suffice and, where
    wanted, while they are accurate enough for these elements.

    Raises
    ------
    RunError
        when the error of forces cannot be brought below ``max_force_error`` eV/Å, or what is wanted exceeds ``max_bytes`` or
        the memory that is free.
    """
    begun = time.perf_counter()
    exact = _in_double(potential)
    batch = make_batch(sample_structures(potential, wanted), potential.cutoff)
    forces = _forces(exact, batch)
    search = _Search(exact, batch, forces, max_force_error)
    what, device = f"tables for {len(wanted)} elements", potential.energy_bias.device
    with memory.enough(what, REMEDY, torch.device("cpu")):
        found = search.run(_start(exact, wanted, old), potential.dtype.itemsize, max_bytes)
    with memory.enough(what, REMEDY, device):
        finished = _joined(potential, found, old, max_bytes)
    rounding = exact_rounding = None
    if potential.dtype != torch.float64 or device.type != "cpu":
        there = batch.to(device)
        rounding, exact_rounding = (
            float((_forces(potential, there, tables).cpu() - forces).abs().max()) for tables in (finished, None)
        )
    solved = finished.solved.cpu()
    report = TableReport(
        elements=tuple(e for e, own in zip(potential.elements, solved.any(1).tolist(), strict=True) if own),
        pairs=int(solved.sum()),
        rows=len(finished.values[0]),
        megabytes=sum(value.numel() for value in finished.values) * potential.dtype.itemsize / 2**20,
        spacing=float((1.0 / finished.grid.inverse.cpu()[solved.flatten()]).median()),
        value_error=float(finished.value_error.max()),
        force_error=search.error,
        rounding=rounding,
        exact_rounding=exact_rounding,
        precision=f"{str(potential.dtype).removeprefix('torch.')} on {device.type}",
        seconds=time.perf_counter() - begun,
    )
    return finished, report


def _too_large(blocks: Sequence[Block], size: int, max_bytes: int) -> str:
    elements = len({block.centre for block in blocks})
    return (
        f"tables for {elements} elements would take {size / 1e9:.2g} GB, more than the {max_bytes / 1e9:.2g} GB that they may: "
        f"{REMEDY}"
    )


class _Search:
    """The spacing of each pair, made smaller until the error that forces have by it is small enough.

    How much force error an error of slopes causes is measured on sample structures, for each quantity by itself. A pair counts
    with its worst place, as if the samples had met it, and is refined by itself.

    Parameters
    ----------
    forces: (levels, N, 3) eV/Å, exact ones of the samples ``batch``.
    """

    def __init__(self, exact: Potential, batch: Batch, forces: Tensor, max_force_error: float) -> None:
        self.exact, self.batch, self.forces, self.bound = exact, batch, forces, max_force_error
        self.steepness = steepness_of(exact)
        self.error = self.expected = math.inf  # eV/Å: on the samples, and were they to meet the worst places
        self.before: dict[int, Errors] = {}  # of the pairs that were refined last
        self.sensitivity: Tensor | None = None  # (T,) eV/Å of force error per Å⁻¹ of slope error

    def run(self, start: tuple[dict[int, int], dict[int, Errors]], itemsize: int, max_bytes: int) -> TableSet:
        """Tables in float64, from the levels of all pairs and the errors of those known.

        Raises
        ------
        RunError
            as ``build``.
        MemoryError
            when they exceed what is free.
        """
        levels, errors = start
        columns, target = sum(widths(self.exact)), self.bound / SAFETY
        tables: TableSet | None = None
        while True:
            blocks = layout(self.exact, levels)
            rows = blocks[-1].end
            if rows * columns * itemsize > max_bytes:
                if tables is not None and self.expected <= self.bound:
                    return tables
                raise RunError(_too_large(blocks, rows * columns * itemsize, max_bytes))
            tables = None  # lets go of their memory
            if 2 * rows * columns * torch.float64.itemsize > memory.free_memory(torch.device("cpu")):
                raise MemoryError
            tables, errors = self._solved(blocks, errors)
            shares = self._shares(tables, errors)
            self.expected = max(shares.values())
            if not math.isfinite(self.expected):
                raise RunError("tables cannot be built: the model's forces on the sample structures are not finite")
            if self.expected <= target:
                return tables
            finer = self._finer(levels, shares, errors)
            if not finer:
                return tables
            levels |= finer
            self.before = {pair: errors.pop(pair) for pair in finer}

    def _finer(self, levels: dict[int, int], shares: dict[int, float], errors: dict[int, Errors]) -> dict[int, int]:
        """Levels of the pairs to be refined; those which that does not help, or cannot, have to be within the bound.

        Raises
        ------
        RunError
            where they are not.
        """
        target, count, finer = self.bound / SAFETY, len(self.exact.elements), {}
        # Where pairs that are each below the target add up to more, all of them are refined.
        limit = target if self.error <= target else AIM * target
        for pair, share in shares.items():
            if share <= limit:
                continue
            last = finest(self.exact, pair // count)
            if share <= self.bound and self._stuck(pair, errors[pair]):
                continue
            if levels[pair] < last:
                # Forces are slopes of a piecewise polynomial of degree 5: their error falls with the fifth power.
                step = math.ceil(LEVELS * math.log2(share / (AIM * target)) / kernel.DEGREE)
                finer[pair] = min(levels[pair] + min(step, MAX_STEP), last)
            elif share > self.bound:
                raise RunError(
                    f"tables cannot reproduce this model to {self.bound:g} eV/Å (they reach {share:.1e}): its functions of "
                    "the distance are not smooth enough; use it without tables, or allow a larger error"
                )
        return finer

    def _stuck(self, pair: int, found: Errors) -> bool:
        """Whether the last refinement left a pair's slopes about as wrong as they were."""
        assert self.sensitivity is not None
        before = self.before.get(pair)
        return before is not None and bool(found.slope @ self.sensitivity > HELPS * before.slope @ self.sensitivity)

    def _solved(self, blocks: Sequence[Block], errors: dict[int, Errors]) -> tuple[TableSet, dict[int, Errors]]:
        """Tables, and the errors of all pairs, measured where they are not known."""
        count, values = len(self.exact.elements), solve(self.exact, blocks)
        grid = grid_of(blocks, count)
        errors = dict(errors)
        for block in blocks:
            if any(block.centre * count + neighbor not in errors for neighbor in block.neighbors):
                errors.update(measure(self.exact, block, values, self.steepness))
        slope = torch.zeros(count * count, len(values), dtype=torch.float64)
        value = torch.zeros(count * count, dtype=torch.float64)
        for pair, known in errors.items():
            slope[pair], value[pair] = known.slope, known.value
        solved = torch.zeros(count * count, dtype=torch.bool)
        solved[list(errors)] = True
        return TableSet(solved.view(count, count), grid, values, slope, value), errors

    def _sensitivity(self, tables: TableSet, errors: dict[int, Errors]) -> Tensor:
        """(T,) eV/Å of force error on the samples per Å⁻¹ of slope error where they have neighbours."""
        parts = {field.name: getattr(tables, field.name) for field in fields(tables)}
        met = self._met(tables, errors).amax(0)
        caused = [self._difference(_Only(**parts, index=index)) for index in range(len(met))]
        return torch.where(met > SMALLEST, torch.tensor(caused, dtype=torch.float64) / met, 0.0)

    def _shares(self, tables: TableSet, errors: dict[int, Errors]) -> dict[int, float]:
        """Pair → eV/Å: the error of forces, were the samples to meet the pair's worst place."""
        if self.sensitivity is None:
            self.sensitivity = self._sensitivity(tables, errors)
        self.error = self._difference(tables)
        met = float((self._met(tables, errors) @ self.sensitivity).max())
        # What many neighbours add up to depends on how alike their errors are, which changes with the spacings.
        together = max(1.0, self.error / met) if met > 0 else 1.0
        shares = tables.slope_error @ self.sensitivity * together
        return {pair: float(shares[pair]) for pair in errors}

    def _difference(self, tables: TableSet) -> float:
        """eV/Å: largest error of a force on the samples."""
        return float((_forces(self.exact, self.batch, tables) - self.forces).abs().max())

    def _met(self, tables: TableSet, errors: dict[int, Errors]) -> Tensor:
        """(P, T) slope errors in the cells where the samples have neighbours, and a row of zeros."""
        descriptor, grid, batch, count = self.exact.descriptor, tables.grid, self.batch, len(self.exact.elements)
        slopes = torch.zeros(len(tables.values[0]), len(tables.values), dtype=torch.float64)
        for pair, found in errors.items():
            first = int(grid.row[pair])
            slopes[first : first + len(found.slopes)] = found.slopes
        types = self.exact.types(batch.numbers)
        centre = types[batch.centre]
        vectors = batch.positions[batch.neighbor] - batch.positions[batch.centre] + batch.shift
        mean = descriptor.mean.reshape(count, -1)[centre, 0]
        scale = descriptor.scale.reshape(count, -1, 2)[centre, 0, 0]
        radial = (radial_entry(self.exact, torch.linalg.vector_norm(vectors, dim=-1)) - mean) / scale
        pairs = centre * count + types[batch.neighbor]
        x = radial * grid.inverse[pairs] + grid.origin[pairs]
        inside = (x >= 0) & (x < grid.cells[pairs])
        met = slopes[(grid.row[pairs] + x.long())[inside]]
        return torch.cat([met, slopes.new_zeros(1, slopes.shape[1])])


@dataclass(frozen=True)
class _Only(TableSet):
    """Tables of one quantity; the networks give the others."""

    index: int = 0

    def lookup(self, radial: Tensor, pair: Tensor, exact: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        found = super().lookup(radial, pair, exact)
        true = exact(torch.ones_like(radial, dtype=torch.bool))
        return tuple(f if k == self.index else t.view_as(f) for k, (f, t) in enumerate(zip(found, true, strict=True)))


def _start(exact: Potential, wanted: Sequence[int], old: TableSet | None) -> tuple[dict[int, int], dict[int, Errors]]:
    """Level of the spacing of every pair to begin with, and the errors of the pairs there are."""
    count = len(exact.elements)
    known = levels_of(old) if old is not None else {}
    first = {centre: min(0, finest(exact, centre)) for centre in wanted}
    pairs = [(centre, centre * count + neighbor) for centre in wanted for neighbor in wanted]
    levels = {pair: known.get(pair, first[centre]) for centre, pair in pairs}
    if old is None:
        return levels, {}
    # Where in its range an old pair has its error is not known: none of its cells counts as met.
    nowhere = torch.zeros(0, len(old.values), dtype=torch.float64)
    return levels, {
        pair: Errors(nowhere, old.slope_error[pair], float(old.value_error[pair])) for pair in levels if pair in known
    }


def _joined(potential: Potential, found: TableSet, old: TableSet | None, max_bytes: int) -> TableSet:
    """Tables in the potential's precision and on its device: the old ones, and what was found that they lack."""
    device, dtype, count = potential.energy_bias.device, potential.dtype, len(potential.elements)
    new, known = levels_of(found), levels_of(old) if old is not None else {}
    fresh = [pair for pair, level in new.items() if known.get(pair) != level]
    kept = sorted(known.keys() - fresh)
    old = found if old is None else old
    new_spans, old_spans = _spans(found.grid, fresh), _spans(old.grid, kept)
    width = sum(value.shape[1] for value in found.values)
    if sum(s.stop - s.start for s in new_spans + old_spans) * width * dtype.itemsize > max_bytes:
        kept = [pair for pair in kept if pair in new]
        old_spans = _spans(old.grid, kept)
    values = tuple(
        torch.cat([*(before[span] for span in old_spans), *(value[span].to(device, dtype) for span in new_spans)])
        for before, value in zip(old.values, found.values, strict=True)
    )

    def merged(before: Tensor, after: Tensor) -> Tensor:
        out = after.clone()
        out[kept], out[fresh] = before[kept].to(after), after[fresh]
        return out

    lengths = torch.tensor([span.stop - span.start for span in old_spans + new_spans])
    row = torch.zeros(count * count, dtype=torch.int64)
    row[kept + fresh] = torch.cumsum(lengths, 0) - lengths
    solved = torch.zeros(count * count, dtype=torch.bool)
    solved[kept + fresh] = True
    inverse, origin, cells = (
        merged(getattr(old.grid, name), getattr(found.grid, name)).to(device, dtype)
        for name in ("inverse", "origin", "cells")
    )
    return TableSet(
        solved=solved.view(count, count).to(device),
        grid=TableGrid(inverse, origin, cells, row.to(device)),
        values=values,
        slope_error=merged(old.slope_error, found.slope_error),
        value_error=merged(old.value_error, found.value_error),
    )


def _spans(grid: TableGrid, pairs: Sequence[int]) -> list[slice]:
    """Rows of each pair."""
    row, cells = grid.row.tolist(), grid.cells.tolist()
    return [slice(row[pair], row[pair] + int(cells[pair]) + kernel.DEGREE) for pair in pairs]


def _forces(potential: Potential, batch: Batch, tables: TableSet | None = None) -> Tensor:
    """(levels, N, 3) eV/Å: forces of every fitting net the potential has, with these tables or none."""
    model = copy.copy(potential)
    model._tables = Tables(math.inf, tables) if tables is not None else None
    levels = model.levels if len(model.level_fittings) else model.levels[:1]
    return torch.stack([model.predict(batch, virial=False, level=level)["forces"] for level in levels])


def _in_double(potential: Potential) -> Potential:
    exact = copy.deepcopy(potential).cpu()
    exact._tables = None
    exact.set_precision("float64")
    return exact
