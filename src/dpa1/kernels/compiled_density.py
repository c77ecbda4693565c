"""The density of neighbours on nodes in compiled loops: ``density`` with a sibling of each of its sums.

Fast sibling of ``reference.training_contraction``. What an atom's pairs bring to its rows of the tables, and read from them, stays
in the processor's cache; the weights of a pair are formed where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dpa1.compiled import available, loops
from dpa1.kernels import density
from dpa1.kernels.arrays import array, memory
from dpa1.kernels.density import Passes, Where
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import polynomials


def supports(*arguments: Any) -> bool:
    """What ``density`` does."""
    return density.supports(*arguments) and available()


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """``reference.training_contraction``, however few the pairs are."""
    return density.run_with(COMPILED, radial, pair, table, layers, rows)


def cumulative(rows: Tensor, where: Where) -> Tensor:
    out = rows.new_empty(len(rows), 4, where.total)
    _cumulative(array(rows), *_given(where), memory(out))
    return out


def slopes(bar: Tensor, rows: Tensor, where: Where) -> tuple[Tensor, Tensor]:
    s_bar, rows_bar = rows.new_empty(rows.shape[:2]), rows.new_empty(rows.shape)
    _slopes(array(bar), array(rows), *_given(where), float(where.step), memory(s_bar), memory(rows_bar))
    return s_bar, rows_bar


def turned(s_bar: Tensor, rows_bar: Tensor, rows: Tensor, where: Where) -> Tensor:
    out = rows.new_empty(len(rows), 4, where.total)
    _turned(*map(array, (s_bar, rows_bar, rows)), *_given(where), float(where.step), memory(out))
    return out


COMPILED = Passes(cumulative, slopes, turned)


def _given(where: Where) -> tuple[np.ndarray | int, ...]:
    """first, place, the polynomials of the weights and of their slopes, count."""
    weights = (array(polynomials(d, where.place.dtype, where.place.device)) for d in (0, 1))
    return array(where.first), array(where.place), *weights, where.kind_rows


@loops
def _cumulative(
    rows: np.ndarray,
    first: np.ndarray,
    place: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    count: int,
    out: np.ndarray,
) -> None:
    atoms, slots = place.shape
    for a in range(atoms):
        out[a] = 0
        for j in range(slots):
            t = place[a, j] - place.dtype.type(0.5)
            for m in range(6):
                w = values[5, m]
                for k in range(4, -1, -1):
                    w = w * t + values[k, m]
                r = first[a, j] + m
                for c in range(4):
                    out[a, c, r] += w * rows[a, j, c]
        for c in range(4):
            for r in range(1, out.shape[2]):
                if r % count:
                    out[a, c, r] += out[a, c, r - 1]


@loops
def _slopes(
    bar: np.ndarray,
    rows: np.ndarray,
    first: np.ndarray,
    place: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    count: int,
    step: float,
    s_bar: np.ndarray,
    rows_bar: np.ndarray,
) -> None:
    number = place.dtype.type
    atoms, slots = place.shape
    total = bar.shape[2]
    summed = np.empty((4, total), place.dtype)
    w = np.empty((6, slots), place.dtype)
    v = np.empty((6, slots), place.dtype)
    for a in range(atoms):
        for c in range(4):
            for r in range(total):
                summed[c, r] = bar[a, c, r]
                if r % count:
                    summed[c, r] += summed[c, r - 1]
        for m in range(6):
            for j in range(slots):
                t = place[a, j] - number(0.5)
                s, d = values[5, m], slopes[4, m]
                for k in range(4, -1, -1):
                    s = s * t + values[k, m]
                for k in range(3, -1, -1):
                    d = d * t + slopes[k, m]
                w[m, j] = s
                v[m, j] = d / number(step)
                if m:
                    v[m, j] += v[m - 1, j]
        for j in range(slots):
            f = first[a, j]
            last = f - f % count + count - 1
            along = number(0)
            for c in range(4):
                value, slope = number(0), number(0)
                for m in range(6):
                    value += w[m, j] * summed[c, f - 1 + m]
                    slope += v[m, j] * bar[a, c, f + m]
                rows_bar[a, j, c] = summed[c, last] - value
                along += slope * rows[a, j, c]
            s_bar[a, j] = along


@loops
def _turned(
    s_bar: np.ndarray,
    rows_bar: np.ndarray,
    rows: np.ndarray,
    first: np.ndarray,
    place: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    count: int,
    step: float,
    out: np.ndarray,
) -> None:
    number = place.dtype.type
    atoms, slots = place.shape
    total = out.shape[2]
    more = np.empty((4, total), place.dtype)
    for a in range(atoms):
        out[a] = 0
        more[:] = 0
        for j in range(slots):
            t = place[a, j] - number(0.5)
            v = number(0)
            for m in range(6):
                w, d = values[5, m], slopes[4, m]
                for k in range(4, -1, -1):
                    w = w * t + values[k, m]
                for k in range(3, -1, -1):
                    d = d * t + slopes[k, m]
                v += d / number(step)
                r = first[a, j] + m
                for c in range(4):
                    out[a, c, r] += w * rows_bar[a, j, c]
                    more[c, r] += v * s_bar[a, j] * rows[a, j, c]
        for c in range(4):
            for r in range(1, total):
                if r % count:
                    out[a, c, r] += out[a, c, r - 1]
            for r in range(total):
                out[a, c, r] += more[c, r]
