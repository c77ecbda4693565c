"""Tabulated features contracted with the environment matrix in one compiled loop per atom.

Fast sibling of ``reference.contracted_spline``. The six weights of each neighbour, its features and their slopes exist for one
atom at a time,

    P = Rᵀ S(x)      R̄ = S P̄ᵀ      x̄_j = Σ_a R_ja Σ_c P̄_ac S'_jc.

With a graph kept, the derivatives are those of ``contracted_spline``.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dpa1.compiled import available, loops
from dpa1.kernels.arrays import array, memory
from dpa1.kernels.contracted_spline import Passes, contracted
from dpa1.kernels.contracted_spline import supports as supported
from dpa1.kernels.table import polynomials


def supports(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> bool:
    """What ``contracted_spline`` does."""
    return supported(place, row, table, rows) and available()


def run(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """``reference.contracted_spline``, twice differentiable in ``place`` and ``rows``."""
    return contracted(COMPILED, place, row, table, rows)


def contract(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """P (N, 4, C)."""
    product = rows.new_empty(len(rows), rows.shape[2], table.shape[1])
    values = polynomials(0, place.dtype, place.device)
    _contract(*map(array, (place, row, table, rows, values)), memory(product))
    return product


def differentiate(
    product_bar: Tensor, place: Tensor, row: Tensor, table: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """x̄ (N, K) and R̄ (N, K, 4)."""
    place_bar, rows_bar = place.new_empty(place.shape), rows.new_empty(rows.shape)
    weights = (polynomials(d, place.dtype, place.device) for d in (0, 1))
    given = map(array, (product_bar, place, row, table, rows, *weights))
    _differentiate(*given, memory(place_bar), memory(rows_bar))
    return place_bar, rows_bar


COMPILED = Passes(contract, differentiate)


@loops
def _contract(
    place: np.ndarray, row: np.ndarray, table: np.ndarray, rows: np.ndarray, values: np.ndarray, product: np.ndarray
) -> None:
    """product (N, 4, C) from place, row (N, K), table (R, C), rows (N, K, 4), polynomials (6, 6) of the weights."""
    atoms, slots = place.shape
    channels = table.shape[1]
    w = np.empty((6, slots), table.dtype)
    for a in range(atoms):
        for m in range(6):
            for j in range(slots):
                t = place[a, j] - table.dtype.type(0.5)
                s = values[5, m]
                for k in range(4, -1, -1):
                    s = s * t + values[k, m]
                w[m, j] = s
        p0, p1, p2, p3 = product[a, 0], product[a, 1], product[a, 2], product[a, 3]
        product[a] = 0
        for j in range(slots):
            r = row[a, j]
            t0, t1, t2, t3, t4, t5 = table[r], table[r + 1], table[r + 2], table[r + 3], table[r + 4], table[r + 5]
            w0, w1, w2, w3, w4, w5 = w[0, j], w[1, j], w[2, j], w[3, j], w[4, j], w[5, j]
            r0, r1, r2, r3 = rows[a, j, 0], rows[a, j, 1], rows[a, j, 2], rows[a, j, 3]
            for c in range(channels):
                s = w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c] + w4 * t4[c] + w5 * t5[c]
                p0[c] += r0 * s
                p1[c] += r1 * s
                p2[c] += r2 * s
                p3[c] += r3 * s


@loops
def _differentiate(
    product_bar: np.ndarray,
    place: np.ndarray,
    row: np.ndarray,
    table: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    place_bar: np.ndarray,
    rows_bar: np.ndarray,
) -> None:
    """place_bar (N, K), rows_bar (N, K, 4) from product_bar (N, 4, C); slopes: polynomials (5, 6) of the weights' slopes."""
    atoms, slots = place.shape
    channels = table.shape[1]
    w = np.empty((6, slots), table.dtype)
    v = np.empty((6, slots), table.dtype)
    for a in range(atoms):
        for m in range(6):
            for j in range(slots):
                t = place[a, j] - table.dtype.type(0.5)
                s, d = values[5, m], slopes[4, m]
                for k in range(4, -1, -1):
                    s = s * t + values[k, m]
                for k in range(3, -1, -1):
                    d = d * t + slopes[k, m]
                w[m, j] = s
                v[m, j] = d
        b0, b1, b2, b3 = product_bar[a, 0], product_bar[a, 1], product_bar[a, 2], product_bar[a, 3]
        for j in range(slots):
            r = row[a, j]
            t0, t1, t2, t3, t4, t5 = table[r], table[r + 1], table[r + 2], table[r + 3], table[r + 4], table[r + 5]
            w0, w1, w2, w3, w4, w5 = w[0, j], w[1, j], w[2, j], w[3, j], w[4, j], w[5, j]
            v0, v1, v2, v3, v4, v5 = v[0, j], v[1, j], v[2, j], v[3, j], v[4, j], v[5, j]
            r0, r1, r2, r3 = rows[a, j, 0], rows[a, j, 1], rows[a, j, 2], rows[a, j, 3]
            x = table.dtype.type(0)
            y0, y1, y2, y3 = x, x, x, x
            for c in range(channels):
                s = w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c] + w4 * t4[c] + w5 * t5[c]
                d = v0 * t0[c] + v1 * t1[c] + v2 * t2[c] + v3 * t3[c] + v4 * t4[c] + v5 * t5[c]
                x += d * (r0 * b0[c] + r1 * b1[c] + r2 * b2[c] + r3 * b3[c])
                y0 += s * b0[c]
                y1 += s * b1[c]
                y2 += s * b2[c]
                y3 += s * b3[c]
            place_bar[a, j] = x
            rows_bar[a, j, 0] = y0
            rows_bar[a, j, 1] = y1
            rows_bar[a, j, 2] = y2
            rows_bar[a, j, 3] = y3
