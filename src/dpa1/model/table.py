"""Tables of everything in the model that depends on one distance and two elements only (docs/model.md, Tables).

Without attention that is the embedding G; with it also the first layer's queries, keys and values. The variable is the
normalised radial input s, in which these functions are analytic: a table in s is as smooth at the switch and at the
cutoff as the model itself. Pairs closer than ``R_MIN`` are evaluated by the networks.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dpa1.kernels import dispatch

if TYPE_CHECKING:
    from dpa1.model.attention import NeighborAttention
    from dpa1.model.descriptor import Descriptor
    from dpa1.model.potential import Potential
    from dpa1.model.rows import Rows

log = logging.getLogger("dpa1")
_building = threading.Lock()  # threads that need the same tables build them once
R_MIN = 0.5  # Å; below, the networks run
EDGE = 1  # knots kept beyond either end of the range, so that rounding never leaves it
MAX_BYTES = 1 << 30  # of one set of tables; beyond, those of elements not at hand are given up


def nearest(cutoff: float) -> float:
    """Å, the distance at which the tables of a model with this cutoff end."""
    return min(R_MIN, 0.25 * cutoff)


@dataclass(frozen=True)
class TableReport:
    """What building tables for some elements cost and how far the result is from the networks.

    Attributes
    ----------
    elements: of which there are tables now: for ``pairs`` ordered pairs, in ``rows`` rows, ``megabytes`` MB.
    spacing: distance of knots, in units of the normalised radial input; the median of all pairs.
    value_error: largest error of any tabulated number between the knots.
    force_error: eV/Å; largest error of a force on sample structures of the elements asked for, tables and networks in float64.
    rounding: eV/Å; the same in the potential's own precision and on its device, None where that is float64 on a CPU.
    exact_rounding: eV/Å; what that precision costs without tables.
    precision: that precision and device.
    seconds: of building and measuring.
    """

    elements: tuple[str, ...]
    pairs: int
    rows: int
    megabytes: float
    spacing: float
    value_error: float
    force_error: float
    rounding: float | None
    exact_rounding: float | None
    precision: str
    seconds: float

    def __str__(self) -> str:
        single = ""
        if self.rounding is not None:
            single = f"; in {self.precision} {self.rounding:.1e}, without tables {self.exact_rounding:.1e}"
        return (
            f"tables for {' '.join(self.elements)}: {self.rows} rows, {self.megabytes:.1f} MB, force error "
            f"{self.force_error:.1e} eV/Å{single}, built in {self.seconds:.2f} s"
        )


@dataclass(frozen=True)
class TableGrid:
    """Where each ordered element pair (centre·E + neighbour) lies: x = s·inverse + origin, its cells and its first row.

    A pair without a table, which an empty slot may name, has one cell in the first row.
    """

    inverse: Tensor
    origin: Tensor
    cells: Tensor
    row: Tensor


@dataclass(frozen=True)
class TableSet:
    """Finished tables. Nothing of them ever changes, so a prediction that holds them is undisturbed by others.

    Attributes
    ----------
    solved: (E, E) whether the ordered pair of a centre and a neighbour element has a table.
    values: (R, C) coefficients of each of T tabulated quantities, for all pairs.
    slope_error: (E², T) float64 on the CPU, Å⁻¹; largest error of a pair's slopes along the distance.
    value_error: (E²,) likewise, of the values themselves.
    all_inside: no pair is closer than ``R_MIN``, as the caller vouches: nothing has to wait for the device to tell.
    """

    solved: Tensor
    grid: TableGrid
    values: tuple[Tensor, ...]
    slope_error: Tensor
    value_error: Tensor
    all_inside: bool = False

    def matches(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether they are in this precision and on this device."""
        return self.values[0].dtype == dtype and self.solved.device == device

    def serves(self, types: Tensor, dtype: torch.dtype) -> bool:
        """Whether all pairs among the element indices (N,) have tables, in this precision and on their device."""
        if not self.matches(dtype, types.device):
            return False
        present = torch.zeros(len(self.solved), dtype=torch.bool, device=types.device)
        present[types] = True
        return not bool((present & present.unsqueeze(1) & ~self.solved).any())

    def lookup(self, radial: Tensor, pair: Tensor, exact: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """All tabulated quantities: radial, pair (n, K) → each (n, K, C).

        ``exact`` evaluates the networks for the slots of a mask (n, K): those out of the tables' range.
        """
        place, row, outside = self._places(radial, pair)
        values = dispatch.spline(place, row, self.values)
        if outside is not None:
            values = tuple(
                value.masked_scatter(outside.unsqueeze(-1), true)
                for value, true in zip(values, exact(outside), strict=True)
            )
        return values

    def contracted(
        self, radial: Tensor, pair: Tensor, rows: Tensor, exact: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> Tensor:
        """The only tabulated quantity contracted with rows (n, K, 4) over the neighbours: (n, C, 4)."""
        place, row, outside = self._places(radial, pair)
        if outside is not None:
            return dispatch.contraction(self.lookup(radial, pair, exact)[0], rows)
        return dispatch.contracted_spline(place, row, self.values[0], rows)

    def _places(self, radial: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(n, K) place within a cell, its first row, and which are out of range, or None for no slot."""
        x = radial * self.grid.inverse[pair] + self.grid.origin[pair]
        with torch.no_grad():
            cells = self.grid.cells[pair]
            outside = (x < 0) | (x >= cells)
            cell = torch.minimum(x.floor().clamp_(min=0), cells - 1)
            row = self.grid.row[pair] + cell.long()
            far = not self.all_inside and bool(outside.any())
        place = x - cell
        return (place.masked_fill(outside, 0.5), row, outside) if far else (place, row, None)


class Tables:
    """The tables of one potential, built when elements are first seen. They hold constants: weights must not change.

    Parameters
    ----------
    max_force_error: eV/Å; bound on the error of forces, in float64, on which the spacing of the knots depends.
    """

    def __init__(self, max_force_error: float, finished: TableSet | None = None) -> None:
        self.max_force_error = max_force_error
        self.finished = finished
        self.reports: list[TableReport] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Tables:
        # Finished tables are constants that copies share; another precision or device makes new ones.
        return copy.copy(self)

    def clear(self) -> None:
        """Forget all tables; the next use builds what it needs."""
        self.finished = None

    def prepare(self, potential: Potential, types: Tensor) -> TableSet:
        """Tables for the element indices (N,) of a batch; what is missing is built first.

        A prediction asks once and uses what it gets to its end, whatever other threads add meanwhile.

        Raises
        ------
        RunError
            when the bound cannot be met, or the tables would be too large.
        """
        finished = self.finished
        if finished is not None and finished.serves(types, potential.dtype):
            return finished
        with _building:
            finished = self.finished
            if finished is None or not finished.serves(types, potential.dtype):
                finished = self.finished = self._extended(potential, types)
            return finished

    def _extended(self, potential: Potential, types: Tensor) -> TableSet:
        from dpa1.model.table_build import build

        wanted, old = types.unique().tolist(), self.finished
        if old is not None and not old.matches(potential.dtype, types.device):
            old = None
        # What a caller's inference mode would create could not be differentiated through later.
        with torch.inference_mode(False):
            found, report = build(potential, wanted, old, self.max_force_error, MAX_BYTES)
        self.reports.append(report)
        log.info("%s", report)
        return found


def tabulated_features(
    descriptor: Descriptor, tables: TableSet, radial: Tensor, rows: Rows, types: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Pair features (n, K, C) and, where they are tabulated, the first layer's queries, keys and values (n, K, W)."""
    pair, exact = _lookup_arguments(descriptor, radial, rows, types)
    found = tables.lookup(radial, pair, exact)
    if not descriptor.types_fade:
        return found[0], (found[1], found[2], found[3]) if len(found) == 4 else None
    centre = rows.centre_type.unsqueeze(1)
    return descriptor.with_types(found[0], rows.neighbor_type, centre, rows.weight, types), None


def tabulated_product(
    descriptor: Descriptor, tables: TableSet, radial: Tensor, matrix: Tensor, rows: Rows, types: Tensor
) -> Tensor:
    """Without attention: pair features contracted with the environment matrix (n, K, 4) → (n, C, 4)."""
    pair, exact = _lookup_arguments(descriptor, radial, rows, types)
    return tables.contracted(radial, pair, matrix, exact)


def _lookup_arguments(
    descriptor: Descriptor, radial: Tensor, rows: Rows, types: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """(n, K) table of each slot, and what evaluates the networks for the slots of a mask."""

    def exact(slots: Tensor) -> tuple[Tensor, ...]:
        centre = rows.centre_type.unsqueeze(1).expand(slots.shape)[slots]
        near = rows.neighbor_type[slots].unsqueeze(0)
        found = columns(descriptor, radial[slots].unsqueeze(0), near, centre.unsqueeze(0), types)
        return tuple(value.squeeze(0) for value in found)

    return rows.neighbor_type + len(types) * rows.centre_type.unsqueeze(1), exact


def columns(
    descriptor: Descriptor, radial: Tensor, neighbor_type: Tensor, centre_type: Tensor, types: Tensor
) -> tuple[Tensor, ...]:
    """What is tabulated, from the networks: (n, K) inputs → each (n, K, C).

    Where a factor of the types fades with the switch, which is no smooth function of s, the features are g + sw·(t∘g): only g
    is tabulated. (Tables of W·g + b and W·(t∘g) for the first layer's products were slower than the products.)
    """
    if descriptor.types_fade:
        return (descriptor.embedding.pairs(radial, None, None),)
    values = descriptor.pair_features(radial, neighbor_type, centre_type, torch.zeros_like(radial), types)
    if not descriptor.attention:
        return (values,)
    return (values, *cast("NeighborAttention", descriptor.attention[0]).project(values))
