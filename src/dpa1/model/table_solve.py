"""Solving tables in float64: the networks at equally spaced knots, splines through them, and the error in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels import table as kernel
from dpa1.model.table import EDGE, TableGrid, TableSet, columns, nearest

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

FIRST_SPACING = 0.2  # of the normalised radial input, whose root mean square is about 1; that of level 0
LEVELS = 4  # per factor of two of the spacing: pairs of equal spacing are solved together
MAX_CELLS = 4096  # of one pair; functions that still need more are not smooth
QUARTERS = 4  # of a cell, at whose ends tables and networks are compared
NODES = 8000  # of one block at most, which bounds the memory that its networks take


@dataclass(frozen=True)
class Block:
    """Pairs of one centre element with knots in common, and the first of their rows.

    Attributes
    ----------
    low: normalised radial input of the first of ``cells`` cells.
    """

    centre: int
    neighbors: tuple[int, ...]
    level: int
    low: float
    cells: int
    first: int

    @property
    def spacing(self) -> float:
        return FIRST_SPACING * 2.0 ** (-self.level / LEVELS)

    @property
    def rows(self) -> int:
        """Of each pair."""
        return self.cells + kernel.DEGREE

    @property
    def end(self) -> int:
        """Row behind the last."""
        return self.first + len(self.neighbors) * self.rows

    def part(self, value: Tensor) -> Tensor:
        """(K, rows, C) view of its rows of a quantity (R, C)."""
        return value[self.first : self.end].view(len(self.neighbors), self.rows, -1)


@dataclass(frozen=True)
class Errors:
    """Of one pair: of slopes along the distance, Å⁻¹, in each cell (cells, T) and at most (T,), and of values at most."""

    slopes: Tensor
    slope: Tensor
    value: float


def levels_of(tables: TableSet) -> dict[int, int]:
    """Level of the spacing of every pair that has a table."""
    inverse = tables.grid.inverse.tolist()
    pairs = torch.nonzero(tables.solved.flatten()).flatten().tolist()
    return {pair: round(LEVELS * math.log2(inverse[pair] * FIRST_SPACING)) for pair in pairs}


def finest(exact: Potential, centre: int) -> int:
    """Level of the smallest spacing that pairs of a centre element may have."""
    low, high = _ends(exact, centre)
    return math.floor(LEVELS * math.log2(FIRST_SPACING * (MAX_CELLS - 2 * EDGE - 1) / (high - low)))


def layout(exact: Potential, levels: Mapping[int, int]) -> list[Block]:
    """Where the rows of each pair lie, its spacing given by a level."""
    count = len(exact.elements)
    blocks: list[Block] = []
    first = 0
    ordered = sorted(levels, key=lambda pair: (pair // count, levels[pair], pair))
    for (centre, level), pairs in groupby(ordered, key=lambda pair: (pair // count, levels[pair])):
        neighbors = [pair % count for pair in pairs]
        low, high = _ends(exact, centre)
        spacing = Block(centre, (), level, 0.0, 0, 0).spacing
        cells = math.ceil((high - low) / spacing) + 2 * EDGE
        size = max(1, NODES // cells)
        for k in range(0, len(neighbors), size):
            block = Block(centre, tuple(neighbors[k : k + size]), level, low - EDGE * spacing, cells, first)
            blocks.append(block)
            first = block.end
    return blocks


def grid_of(blocks: Sequence[Block], count: int) -> TableGrid:
    """The same for looking up, of ``count`` elements."""
    inverse, origin = torch.zeros(2, count * count, dtype=torch.float64)
    cells = torch.ones(count * count, dtype=torch.float64)
    row = torch.zeros(count * count, dtype=torch.int64)
    for block in blocks:
        pairs = block.centre * count + torch.tensor(block.neighbors)
        inverse[pairs], origin[pairs] = 1.0 / block.spacing, -block.low / block.spacing
        cells[pairs] = float(block.cells)
        row[pairs] = block.first + block.rows * torch.arange(len(pairs))
    return TableGrid(inverse, origin, cells, row)


def widths(exact: Potential) -> list[int]:
    """Columns of each tabulated quantity."""
    return [value.shape[-1] for value in _columns(exact, torch.zeros(1, dtype=torch.float64), 0, (0,))]


def solve(exact: Potential, blocks: Sequence[Block]) -> tuple[Tensor, ...]:
    """(R, C) spline coefficients of each quantity."""
    values = tuple(torch.empty(blocks[-1].end, width, dtype=torch.float64) for width in widths(exact))
    for block in blocks:
        steps = torch.arange(block.cells + 1 + 2 * kernel.MARGIN, dtype=torch.float64) - kernel.MARGIN
        kept = slice(kernel.MARGIN - 2, kernel.MARGIN + block.cells + 3)
        found = _columns(exact, block.low + block.spacing * steps, block.centre, block.neighbors)
        for value, nodal in zip(values, found, strict=True):
            solved = torch.from_numpy(kernel.coefficients(nodal.flatten(1).numpy())[kept])
            block.part(value).copy_(solved.view(block.rows, *nodal.shape[1:]).transpose(0, 1))
    return values


def measure(
    exact: Potential, block: Block, values: tuple[Tensor, ...], steepness: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Errors]]:
    """Each pair of a block with its errors, within the range of real distances."""
    count, kinds = len(exact.elements), len(block.neighbors)
    cells = torch.arange(EDGE, block.cells - EDGE, dtype=torch.float64)
    places = torch.arange(1, QUARTERS, dtype=torch.float64) / QUARTERS
    weights = kernel.spline_weights(0, places)
    radial = block.low + block.spacing * (cells.unsqueeze(1) + places)
    true = _columns(exact, radial.flatten(), block.centre, block.neighbors)
    # Slopes are those along the distance, dG/dr, as they enter forces.
    mean, scale = _normalisation(exact, block.centre)
    steep = steepness(radial * scale + mean).amax(1) / scale
    slopes = torch.zeros(kinds, block.cells, len(values), dtype=torch.float64)
    largest = torch.zeros(kinds, dtype=torch.float64)
    for index, (value, exactly) in enumerate(zip(values, true, strict=True)):
        nodal = exactly.view(len(cells), len(places), kinds, -1).transpose(0, 2)
        errors = [_between(block.part(value), w) - nodal[:, k] for k, w in enumerate(weights.tolist())]
        # At the knots there is no error.
        ends = [torch.zeros_like(errors[0]), *errors, torch.zeros_like(errors[0])]
        steps = torch.stack([(b - a).abs().amax(-1) for a, b in pairwise(ends)]).amax(0)
        slopes[:, EDGE : block.cells - EDGE, index] = steps * (QUARTERS / block.spacing * steep)
        largest = torch.maximum(largest, torch.stack([e.abs().amax((1, 2)) for e in errors]).amax(0))
    for k, neighbor in enumerate(block.neighbors):
        yield block.centre * count + neighbor, Errors(slopes[k], slopes[k].amax(0), float(largest[k]))


def _between(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """(K, n, C) values at one place in each cell that real distances reach, from rows (K, n + 7, C)."""
    cells = rows.shape[1] - kernel.DEGREE - 2 * EDGE
    found = weights[0] * rows[:, EDGE : EDGE + cells]
    for m, weight in enumerate(weights[1:], start=EDGE + 1):
        found.add_(rows[:, m : m + cells], alpha=weight)
    return found


def steepness_of(exact: Potential) -> Callable[[Tensor], Tensor]:
    """|dR/dr| in Å⁻² as a function of the radial entry R of the environment matrix, before normalisation."""
    fine = torch.linspace(nearest(exact.cutoff), exact.cutoff, 20_000, dtype=torch.float64)
    entry = radial_entry(exact, fine)
    steep = torch.gradient(entry, spacing=(fine,))[0].abs()
    # The entry falls with the distance, hence the flips.
    rising, ordered = entry.flip(0).numpy(), steep.flip(0).numpy()
    return lambda at: torch.from_numpy(np.interp(at.numpy(), rising, ordered))


def radial_entry(exact: Potential, distance: Tensor) -> Tensor:
    """The radial entry of the environment matrix, Å⁻¹, before normalisation."""
    config = exact.config
    return reference.radial_entry(distance, config.switch_start, config.cutoff, config.environment_protection)


def _ends(exact: Potential, centre: int) -> tuple[float, float]:
    """Of the normalised radial input, in every slot that has statistics of its own."""
    descriptor = exact.descriptor
    top = radial_entry(exact, torch.tensor(nearest(exact.cutoff), dtype=torch.float64))
    mean, scale = descriptor.mean[centre].reshape(-1), descriptor.scale[centre].reshape(-1, 2)[:, 0]
    ends = torch.stack([-mean / scale, (top - mean) / scale])
    return float(ends.min()), float(ends.max())


def _normalisation(exact: Potential, centre: int) -> tuple[float, float]:
    """Mean and scale of the radial entry, those of the first slot."""
    descriptor = exact.descriptor
    return float(descriptor.mean[centre].reshape(-1)[0]), float(descriptor.scale[centre].reshape(-1, 2)[0, 0])


def _columns(exact: Potential, radial: Tensor, centre: int, neighbors: Sequence[int]) -> tuple[Tensor, ...]:
    """The networks at radial inputs (n,) for K neighbour elements: each (n, K, C)."""
    descriptor = exact.descriptor
    shape = (len(radial), len(neighbors))
    with torch.no_grad():
        return columns(
            descriptor, radial.unsqueeze(1).expand(shape), torch.tensor(neighbors).expand(shape),
            torch.tensor([[centre]]), descriptor.type_embedding(),
        )  # fmt: skip
