"""From pairs to the contracted matrix in compiled loops: for inference with tables and without attention.

Fast sibling of ``reference.tabulated_pairs``. Nothing is padded, and nothing but a few numbers per pair is written between
positions and M. Of each pair with matrix row R, its slope along the vector v = r·n is

    s̄ = (x̄·inverse + R̄₀)/scale      v̄ = q e + n (s′ s̄ + (s′ − q) i r n·e),      e = (R̄₁, R̄₂, R̄₃)/scale,

s = w·i, q = s·i, i = 1/(r + protection), s′ = w′i − q. With a graph kept, derivatives are those of the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.compiled import available, loops
from dpa1.kernels import reference
from dpa1.kernels.arrays import array, memory
from dpa1.kernels.by_reference import gradients
from dpa1.kernels.reference import Lookup
from dpa1.kernels.table import polynomials

KEPT = 5  # numbers per pair: place in its cell, distance r, inverse i, factor q, cells per unit of s


def supports(vectors: Tensor, ends: Tensor, centre_type: Tensor, neighbor_type: Tensor, lookup: Lookup) -> bool:
    """Positions in float64, constant tables."""
    return vectors.dtype == torch.float64 and not lookup.table.requires_grad and available()


def run(vectors: Tensor, ends: Tensor, centre_type: Tensor, neighbor_type: Tensor, lookup: Lookup) -> Tensor:
    """``reference.tabulated_pairs``, differentiable in ``vectors`` to any order."""
    product: Tensor = _Pairs.apply(vectors, ends, centre_type, neighbor_type, lookup)
    return product.transpose(1, 2)


def closest(vectors: Tensor) -> float:
    """Å; the shortest of vectors (P, 3), infinite of none."""
    out = np.empty(1)
    _shortest(array(vectors), out)
    return float(out[0])


class _Pairs(torch.autograd.Function):
    """M (N, 4, C)."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, ends: Tensor, centre: Tensor, neighbor: Tensor, lookup: Lookup) -> Tensor:
        table = lookup.table
        product = table.new_empty(len(ends), 4, table.shape[1])
        kept, row = table.new_empty(len(vectors), KEPT), ends.new_empty(len(vectors))
        most = int(torch.diff(ends, prepend=ends.new_zeros(1)).max())
        numbers = map(array, (centre, neighbor, *_statistics(lookup), *_grid(lookup), table))
        _contract(
            array(vectors),
            array(ends),
            most,
            *numbers,
            array(_weights(0, table)),
            *_lengths(lookup),
            lookup.centred,
            *map(memory, (kept, row, product)),
        )
        ctx.lookup, ctx.most = lookup, most
        ctx.save_for_backward(vectors, ends, centre, neighbor, kept, row)
        return product

    @staticmethod
    def backward(ctx: Any, *product_bar: Tensor) -> tuple[Tensor | None, ...]:
        vectors, ends, centre, neighbor, kept, row = ctx.saved_tensors
        lookup, (bar,) = ctx.lookup, product_bar
        if torch.is_grad_enabled():
            again = vectors.view_as(vectors)
            product = reference.tabulated_pairs(again, ends, centre, neighbor, lookup)
            return gradients(product, bar.transpose(1, 2), [again])[0], None, None, None, None
        found, table = torch.empty_like(vectors), lookup.table
        numbers = map(array, (centre, *_statistics(lookup), table, kept, row))
        start, cutoff, _ = _lengths(lookup)
        weights = (array(_weights(d, table)) for d in (0, 1))
        _differentiate(
            *map(array, (bar, vectors, ends)),
            ctx.most,
            *numbers,
            *weights,
            start,
            cutoff,
            lookup.centred,
            memory(found),
        )
        return found, None, None, None, None


def _statistics(lookup: Lookup) -> tuple[Tensor, ...]:
    return lookup.shift, lookup.radial_scale, lookup.angular_scale


def _grid(lookup: Lookup) -> tuple[Tensor, ...]:
    return lookup.inverse, lookup.origin, lookup.cells, lookup.row


def _lengths(lookup: Lookup) -> tuple[float, float, float]:
    return float(lookup.start), float(lookup.cutoff), float(lookup.protection)


def _weights(derivative: int, table: Tensor) -> Tensor:
    return polynomials(derivative, table.dtype, table.device)


@loops
def _shortest(vectors: np.ndarray, out: np.ndarray) -> None:
    least = np.inf
    for p in range(len(vectors)):
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        least = min(least, x * x + y * y + z * z)
    out[0] = np.sqrt(least)


@loops
def _contract(
    vectors: np.ndarray,
    ends: np.ndarray,
    most: int,
    centre: np.ndarray,
    neighbor: np.ndarray,
    shift: np.ndarray,
    radial_scale: np.ndarray,
    angular_scale: np.ndarray,
    inverse: np.ndarray,
    origin: np.ndarray,
    cells: np.ndarray,
    first: np.ndarray,
    table: np.ndarray,
    values: np.ndarray,
    start: float,
    cutoff: float,
    protection: float,
    centred: bool,
    kept: np.ndarray,
    row: np.ndarray,
    product: np.ndarray,
) -> None:
    """product (N, 4, C), kept (P, KEPT) and first table rows (P,)."""
    number = table.dtype.type
    atoms, channels = len(ends), table.shape[1]
    rows = np.empty((most, 4), table.dtype)
    w = np.empty((6, most), table.dtype)
    begin = 0
    for a in range(atoms):
        kind = centre[a]
        angular = number(1) / angular_scale[kind]
        count = ends[a] - begin
        for j in range(count):
            p = begin + j
            x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
            r = number(np.sqrt(x * x + y * y + z * z))
            u = min(max((r - number(start)) / number(cutoff - start), number(0)), number(1))
            v = number(1) + u * u * u * (u * (number(15) - number(6) * u) - number(10))
            i = number(1) / (r + number(protection))
            s = v * i
            q = s * i
            radial = (s - shift[kind]) / radial_scale[kind]
            pair = neighbor[p] + len(shift) * kind
            place = radial * inverse[pair] + origin[pair]
            cell = min(max(np.floor(place), number(0)), cells[pair] - number(1))
            row[p] = first[pair] + np.int64(cell)
            kept[p, 0], kept[p, 1], kept[p, 2], kept[p, 3], kept[p, 4] = place - cell, r, i, q, inverse[pair]
            rows[j, 0] = radial if centred else s / radial_scale[kind]
            rows[j, 1], rows[j, 2], rows[j, 3] = (
                q * number(x) * angular,
                q * number(y) * angular,
                q * number(z) * angular,
            )
        for m in range(6):
            for j in range(count):
                t = kept[begin + j, 0] - number(0.5)
                c = values[5, m]
                for k in range(4, -1, -1):
                    c = c * t + values[k, m]
                w[m, j] = c
        p0, p1, p2, p3 = product[a, 0], product[a, 1], product[a, 2], product[a, 3]
        product[a] = 0
        for j in range(count):
            f = row[begin + j]
            t0, t1, t2, t3, t4, t5 = table[f], table[f + 1], table[f + 2], table[f + 3], table[f + 4], table[f + 5]
            w0, w1, w2, w3, w4, w5 = w[0, j], w[1, j], w[2, j], w[3, j], w[4, j], w[5, j]
            r0, r1, r2, r3 = rows[j, 0], rows[j, 1], rows[j, 2], rows[j, 3]
            for c in range(channels):
                g = w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c] + w4 * t4[c] + w5 * t5[c]
                p0[c] += r0 * g
                p1[c] += r1 * g
                p2[c] += r2 * g
                p3[c] += r3 * g
        begin = ends[a]


@loops
def _differentiate(
    bar: np.ndarray,
    vectors: np.ndarray,
    ends: np.ndarray,
    most: int,
    centre: np.ndarray,
    shift: np.ndarray,
    radial_scale: np.ndarray,
    angular_scale: np.ndarray,
    table: np.ndarray,
    kept: np.ndarray,
    row: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    start: float,
    cutoff: float,
    centred: bool,
    found: np.ndarray,
) -> None:
    """found (P, 3): v̄ from bar (N, 4, C)."""
    number = table.dtype.type
    atoms, channels = len(ends), table.shape[1]
    w = np.empty((6, most), table.dtype)
    d = np.empty((6, most), table.dtype)
    begin = 0
    for a in range(atoms):
        kind = centre[a]
        angular = number(1) / angular_scale[kind]
        count = ends[a] - begin
        for m in range(6):
            for j in range(count):
                t = kept[begin + j, 0] - number(0.5)
                c, e = values[5, m], slopes[4, m]
                for k in range(4, -1, -1):
                    c = c * t + values[k, m]
                for k in range(3, -1, -1):
                    e = e * t + slopes[k, m]
                w[m, j] = c
                d[m, j] = e
        b0, b1, b2, b3 = bar[a, 0], bar[a, 1], bar[a, 2], bar[a, 3]
        for j in range(count):
            p = begin + j
            f = row[p]
            t0, t1, t2, t3, t4, t5 = table[f], table[f + 1], table[f + 2], table[f + 3], table[f + 4], table[f + 5]
            w0, w1, w2, w3, w4, w5 = w[0, j], w[1, j], w[2, j], w[3, j], w[4, j], w[5, j]
            d0, d1, d2, d3, d4, d5 = d[0, j], d[1, j], d[2, j], d[3, j], d[4, j], d[5, j]
            r, i, q = kept[p, 1], kept[p, 2], kept[p, 3]
            length = np.sqrt(vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2)
            x, y, z = number(vectors[p, 0]), number(vectors[p, 1]), number(vectors[p, 2])
            s = q * (number(1) / i)
            r0 = s / radial_scale[kind]
            if centred:
                r0 = (s - shift[kind]) / radial_scale[kind]
            r1, r2, r3 = q * x * angular, q * y * angular, q * z * angular
            zero = number(0)
            place_bar, y0, y1, y2, y3 = zero, zero, zero, zero, zero
            for c in range(channels):
                g = w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c] + w4 * t4[c] + w5 * t5[c]
                h = d0 * t0[c] + d1 * t1[c] + d2 * t2[c] + d3 * t3[c] + d4 * t4[c] + d5 * t5[c]
                place_bar += h * (r0 * b0[c] + r1 * b1[c] + r2 * b2[c] + r3 * b3[c])
                y0 += g * b0[c]
                y1 += g * b1[c]
                y2 += g * b2[c]
                y3 += g * b3[c]
            u = min(max((r - number(start)) / number(cutoff - start), number(0)), number(1))
            falling = u * (number(1) - u)
            slope = number(-30 / (cutoff - start)) * falling * falling * i - q
            n0, n1, n2 = number(vectors[p, 0] / length), number(vectors[p, 1] / length), number(vectors[p, 2] / length)
            e0, e1, e2 = y1 * angular, y2 * angular, y3 * angular
            total = slope * (place_bar * kept[p, 4] + y0) / radial_scale[kind]
            total += (slope - q) * i * r * (n0 * e0 + n1 * e1 + n2 * e2)
            found[p, 0], found[p, 1], found[p, 2] = q * e0 + n0 * total, q * e1 + n1 * total, q * e2 + n2 * total
        begin = ends[a]
