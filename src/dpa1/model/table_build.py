"""Building tables: knots as dense as the bound on forces asks for, measured against the networks in float64."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor

from dpa1.batch import Batch, make_batch
from dpa1.errors import RunError
from dpa1.frames import Frame, make_frame
from dpa1.kernels import dispatch, reference
from dpa1.kernels import table as kernel
from dpa1.model.table import EDGE, R_MIN, Grid, TableReport, Tables, TableSet, columns

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

FIRST_SPACING = 0.2  # of the normalised radial input, whose root mean square is about 1
SAFETY = 4.0  # the bound divided by the largest error allowed on the sample structures
MAX_CELLS = 4096  # of one pair; functions that still need more are not smooth
BETWEEN = (0.05, 0.25, 0.5, 0.75, 0.95)  # fractions of a cell at which tables and networks are compared
STEP = 0.02  # of a cell, for slopes
SAMPLES = 3  # structures on which forces are compared


Made = tuple[Grid, tuple[Tensor, ...]]


def build(
    potential: Potential, elements: frozenset[int], max_force_error: float, max_bytes: int, needed: frozenset[int]
) -> tuple[TableSet, TableReport]:
    """Tables for all ordered pairs of ``elements`` (indices); only those of ``needed`` where all would take too much.

    Raises
    ------
    RunError
        when the error of forces cannot be brought below ``max_force_error`` eV/Å.
    """
    begun = time.perf_counter()
    exact = _in_double(potential)
    frames = sample_structures(potential, sorted(needed))
    batch = make_batch(frames, potential.cutoff)
    forces = _forces(exact, batch)
    spacing, expected = FIRST_SPACING, math.inf
    while True:
        solved = _solve(exact, sorted(elements), spacing)
        if solved is None and expected <= max_force_error:
            break
        if solved is None:
            raise RunError(
                f"tables cannot reproduce this model to {max_force_error:g} eV/Å (they reach {expected:.1e}): its functions "
                "of the distance are not smooth enough; use it without tables, or allow a larger error"
            )
        made = solved
        grid, values = made
        size = sum(value.numel() for value in values) * potential.dtype.itemsize
        if size > max_bytes and elements != needed:
            elements = needed
            continue
        error = float((_forces(exact, batch, _finished(exact, made, elements)) - forces).abs().max())
        # A cell where the error is larger than in those which the sample structures met counts as if they had met it.
        expected = error * _unseen_factor(exact, batch, sorted(elements), grid, values)
        if expected <= max_force_error / SAFETY:
            break
        if not math.isfinite(expected):
            raise RunError("tables cannot be built: the model's forces on the sample structures are not finite")
        # Forces are slopes of a piecewise polynomial of degree 5: their error falls with the fifth power.
        wanted = (0.5 * max_force_error / SAFETY / expected) ** (1.0 / kernel.DEGREE)
        spacing *= min(max(wanted, 0.25), 0.85)
    finished = _finished(potential, made, elements)
    rounding = exact_rounding = None
    if potential.dtype != torch.float64 or potential.energy_bias.device.type != "cpu":
        there = batch.to(potential.energy_bias.device)
        rounding, exact_rounding = (
            float((_forces(potential, there, tables).cpu() - forces).abs().max()) for tables in (finished, None)
        )
    report = TableReport(
        elements=tuple(potential.elements[k] for k in sorted(elements)),
        pairs=len(elements) ** 2,
        rows=len(values[0]),
        megabytes=size / 2**20,
        spacing=1.0 / float(grid.inverse[0]),
        value_error=_value_error(exact, sorted(elements), grid, values),
        force_error=error,
        rounding=rounding,
        exact_rounding=exact_rounding,
        precision=f"{str(potential.dtype).removeprefix('torch.')} on {potential.energy_bias.device.type}",
        seconds=time.perf_counter() - begun,
    )
    return finished, report


def _finished(potential: Potential, made: Made, elements: frozenset[int]) -> TableSet:
    """Tables in the potential's precision and on its device."""
    device, (grid, values) = potential.energy_bias.device, made
    known = torch.zeros(len(potential.elements), dtype=torch.bool)
    known[list(elements)] = True
    short = tuple(value.to(device, potential.dtype) for value in values)
    return TableSet(elements, known.to(device), grid.to(potential.dtype, device), short)


def _forces(potential: Potential, batch: Batch, finished: TableSet | None = None) -> Tensor:
    """(levels, N, 3) eV/Å: forces of every fitting net the potential has, with these tables or none."""
    model = copy.copy(potential)
    model._tables = Tables(1.0, finished) if finished is not None else None
    levels = model.levels if len(model.level_fittings) else model.levels[:1]
    return torch.stack([model.predict(batch, virial=False, level=level)["forces"] for level in levels])


def _in_double(potential: Potential) -> Potential:
    exact = copy.deepcopy(potential).cpu()
    exact._tables = None
    exact.set_precision("float64")
    return exact


def _solve(exact: Potential, elements: Sequence[int], spacing: float) -> Made | None:
    """Grid and coefficients; None when a pair would need more than ``MAX_CELLS`` cells."""
    descriptor = exact.descriptor
    count = len(exact.elements)
    inverse = torch.full((count * count,), 1.0 / spacing, dtype=torch.float64)
    origin, cells = torch.zeros_like(inverse), torch.ones_like(inverse)
    row = torch.zeros(count * count, dtype=torch.int64)
    nearest = _radial(exact, torch.tensor(min(R_MIN, 0.25 * exact.cutoff), dtype=torch.float64))
    pieces: list[list[Tensor]] = []
    first = 0
    neighbors = torch.tensor(elements)
    for centre in elements:
        mean, scale = descriptor.mean[centre].reshape(-1), descriptor.scale[centre].reshape(-1, 2)[:, 0]
        ends = torch.stack([-mean / scale, (nearest - mean) / scale])
        low, high = float(ends.min()), float(ends.max())
        number = math.ceil((high - low) / spacing) + 2 * EDGE
        if number > MAX_CELLS:
            return None
        nodes = low + spacing * (
            torch.arange(number + 1 + 2 * kernel.MARGIN, dtype=torch.float64) - kernel.MARGIN - EDGE
        )
        values = _columns(exact, nodes, centre, neighbors)
        kept = slice(kernel.MARGIN - 2, kernel.MARGIN + number + 3)
        solved = [
            torch.from_numpy(kernel.coefficients(v.flatten(1).numpy())[kept]).view(-1, *v.shape[1:]) for v in values
        ]
        for k, neighbor in enumerate(elements):
            pair = centre * count + neighbor
            origin[pair], cells[pair], row[pair] = EDGE - low / spacing, number, first
            first += len(solved[0])
            pieces.append([s[:, k] for s in solved])
    columns_of = zip(*pieces, strict=True)
    return Grid(inverse, origin, cells, row), tuple(torch.cat(column) for column in columns_of)


def _columns(exact: Potential, radial: Tensor, centre: int, neighbors: Tensor) -> tuple[Tensor, ...]:
    """The networks at radial inputs (n,) for every neighbour element (K,): each (n, K, C)."""
    descriptor = exact.descriptor
    shape = (len(radial), len(neighbors))
    with torch.no_grad():
        return columns(
            descriptor, radial.unsqueeze(1).expand(shape), neighbors.expand(shape), torch.tensor([[centre]]),
            descriptor.type_embedding(),
        )  # fmt: skip


def _value_error(exact: Potential, elements: Sequence[int], grid: Grid, values: tuple[Tensor, ...]) -> float:
    """Largest error between the knots, over all pairs, quantities and channels."""
    places = [_between(grid, centre * len(exact.elements) + k) for centre in elements for k in elements]
    radial = torch.cat(places)
    pair = _pairs(exact, elements).repeat_interleave(torch.tensor([len(p) for p in places]))
    return max(float(e.max()) for e in _errors(exact, radial, pair, grid, values))


def _unseen_factor(
    exact: Potential, batch: Batch, elements: Sequence[int], grid: Grid, values: tuple[Tensor, ...]
) -> float:
    """Largest error of a slope anywhere in the tables, as a multiple of the largest where the batch has neighbours.

    Slopes are those along the distance, dG/dr, as they enter forces.
    """
    descriptor, config, count = exact.descriptor, exact.config, len(exact.elements)
    fine = torch.linspace(min(R_MIN, 0.25 * config.cutoff), config.cutoff, 20_000, dtype=torch.float64)
    inverse = _radial(exact, fine)
    steep = torch.gradient(inverse, spacing=(fine,))[0].abs().numpy()

    def slopes(radial: Tensor, pair: Tensor) -> list[float]:
        centre = pair // count
        mean = descriptor.mean.reshape(count, -1)[centre, 0]
        scale = descriptor.scale.reshape(count, -1, 2)[centre, 0, 0]
        # The radial input falls with the distance, hence the flips.
        at = (radial * scale + mean).numpy()
        weight = torch.from_numpy(np.interp(at, inverse.numpy()[::-1], steep[::-1])) / scale
        step = STEP / grid.inverse[pair]
        above, below = (_errors(exact, radial + side * step, pair, grid, values, signed=True) for side in (0.5, -0.5))
        return [float((((a - b).abs().amax(-1)) / step * weight).max()) for a, b in zip(above, below, strict=True)]

    pairs = _pairs(exact, elements)
    places = [_between(grid, int(pair)) for pair in pairs]
    anywhere = slopes(torch.cat(places), pairs.repeat_interleave(torch.tensor([len(p) for p in places])))
    types = exact.types(batch.numbers)
    vectors = batch.positions[batch.neighbor] - batch.positions[batch.centre] + batch.shift
    centre = types[batch.centre]
    mean = descriptor.mean.reshape(count, -1)[centre, 0]
    scale = descriptor.scale.reshape(count, -1, 2)[centre, 0, 0]
    distance = torch.linalg.vector_norm(vectors, dim=-1)
    radial = (_radial(exact, distance) - mean) / scale
    inside = distance > R_MIN
    if not bool(inside.any()):
        return 1.0
    met = slopes(radial[inside], (centre * count + types[batch.neighbor])[inside])
    return max(1.0, *(a / max(m, 1e-12) for a, m in zip(anywhere, met, strict=True)))


def _radial(exact: Potential, distance: Tensor) -> Tensor:
    """The radial entry of the environment matrix, before normalisation."""
    config = exact.config
    return reference.switch(distance, config.switch_start, config.cutoff) / (distance + config.environment_protection)


def _pairs(exact: Potential, elements: Sequence[int]) -> Tensor:
    return torch.tensor([centre * len(exact.elements) + k for centre in elements for k in elements])


def _between(grid: Grid, pair: int) -> Tensor:
    """Radial inputs between the knots of one pair's table, within the range of real distances."""
    cell = torch.arange(EDGE, int(grid.cells[pair]) - EDGE).repeat_interleave(len(BETWEEN))
    place = torch.tensor(BETWEEN, dtype=torch.float64).repeat(len(cell) // len(BETWEEN))
    return (cell + place - grid.origin[pair]) / grid.inverse[pair]


def _errors(
    exact: Potential, radial: Tensor, pair: Tensor, grid: Grid, values: tuple[Tensor, ...], signed: bool = False
) -> list[Tensor]:
    """Table minus networks, (P, C) for each quantity at radial inputs (P,) of pairs (P,)."""
    descriptor, count = exact.descriptor, len(exact.elements)
    x = radial * grid.inverse[pair] + grid.origin[pair]
    cell = torch.minimum(x.floor().clamp(min=0), grid.cells[pair] - 1)
    found = dispatch.spline(x - cell, grid.row[pair] + cell.long(), values)
    with torch.no_grad():
        true = columns(
            descriptor, radial[None], (pair % count)[None], (pair // count)[None], descriptor.type_embedding()
        )  # fmt: skip
    return [f - t[0] if signed else (f - t[0]).abs() for f, t in zip(found, true, strict=True)]


def sample_structures(potential: Potential, elements: Sequence[int]) -> list[Frame]:
    """Periodic random structures of these elements (indices) with contacts from bonded to far, for measuring errors."""
    rng = np.random.default_rng(0)
    symbols = [potential.elements[k] for k in elements]
    numbers = np.array([atomic_numbers[s] for s in symbols])
    atoms = min(max(16, 2 * len(numbers)), 96)
    neighbors = potential.config.mean_neighbors or 0.5 * float(potential.config.sel or 0)
    sphere = 4.0 / 3.0 * math.pi * potential.cutoff**3
    edge = (atoms / min(max(neighbors / sphere, 0.01), 0.1)) ** (1.0 / 3.0)
    frames = []
    for index in range(SAMPLES):
        kinds = rng.permutation(
            np.resize(numbers, atoms) if atoms >= len(numbers) else rng.choice(numbers, atoms, False)
        )
        cell = np.eye(3) * edge + rng.uniform(-0.08, 0.08, (3, 3)) * edge
        frames.append(make_frame(kinds, _place(kinds, cell, rng), cell, True, source="sample", index=index))
    return frames


def _place(kinds: np.ndarray, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random positions without contacts shorter than about a bond."""
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
    radii = covalent_radii[kinds]
    placed: list[np.ndarray] = []
    for index in range(len(kinds)):
        allowed = 0.9
        while True:
            trial = rng.uniform(0, 1, 3) @ cell
            gaps = [np.linalg.norm(trial - p + images, axis=1).min() for p in placed]
            if all(gap > allowed * (radii[index] + radii[k]) for k, gap in enumerate(gaps)):
                break
            allowed *= 0.98
        placed.append(trial)
    return np.array(placed)
