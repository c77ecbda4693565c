"""Pairs of atoms within a distance, each once, by compiled loops over cubes half as wide as that distance.

The library that searches where there is no compiler (``neighbors``) takes three to ten times as long, most for small periodic
cells, and would be a sixth of the time of a model with tables and without attention.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dpa1.compiled import loops

REACH = 2  # cubes along the distance: smaller ones fit the sphere better
EDGE = 1e-6  # by which cubes are wider, so that rounding at their faces loses no pair
MOST_CUBES = 4  # per atom: a structure that is mostly empty has wider cubes
SHARED = 20_000  # atoms from which threads share the search
SPARE = 1.15  # room for so many times the pairs that a uniform density has


class Pairs(NamedTuple):
    """Each pair once: centre, neighbor (P,), image (P, 3); and the distance in Å of the closest two atoms, and which, if any."""

    centre: np.ndarray
    neighbor: np.ndarray
    image: np.ndarray
    closest: tuple[float, int, int] | None


@dataclass(frozen=True)
class Cubes:
    """Atoms sorted into cubes of a cell.

    Attributes
    ----------
    atom (N,): which atom; position (N, 3) Å within the cell, home (N, 3) the image it was moved from.
    first (X, Y, Z, flattened, + 1): where the atoms of each cube begin.
    shape: X, Y, Z; reach: cubes to look at in each direction; periodic; cell (3, 3).
    """

    atom: np.ndarray
    position: np.ndarray
    home: np.ndarray
    first: np.ndarray
    shape: np.ndarray
    reach: np.ndarray
    periodic: np.ndarray
    cell: np.ndarray


def find_pairs(positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray, cutoff: float, threads: int = 1) -> Pairs:
    """Each pair with 0 ≤ r ≤ cutoff, in one of its directions.

    positions (N, 3) Å, anywhere; cell (3, 3) Å invertible, also where a direction is not periodic (3,). A pair's vector is
    ``x[neighbor] − x[centre] + image @ cell``. An atom is paired with its own images, not with itself.
    """
    cubes = _sorted_into_cubes(positions, cell, periodic, cutoff)
    count = len(positions)
    parts = threads if count >= SHARED else 1
    edges = np.linspace(0, count, parts + 1).astype(np.int64)
    guess = _guess(cubes, cutoff)
    if parts == 1:
        return _part(cubes, cutoff, 0, count, guess)
    with ThreadPoolExecutor(parts) as pool:
        found = list(
            pool.map(lambda ends: _part(cubes, cutoff, ends[0], ends[1], guess // parts), pairwise(edges.tolist()))
        )
    centre, neighbor, image = (np.concatenate(columns) for columns in zip(*(part[:3] for part in found), strict=True))
    return Pairs(centre, neighbor, image, min((part.closest for part in found if part.closest), default=None))


def _sorted_into_cubes(positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray, cutoff: float) -> Cubes:
    count, inverse = len(positions), np.linalg.inv(cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)  # between opposite faces
    inside, home, ends = np.empty((count, 3)), np.empty((count, 3), dtype=np.int32), np.empty((2, 3))
    positions, cell, periodic = np.ascontiguousarray(positions), np.ascontiguousarray(cell), periodic.astype(np.bool_)
    _fold(positions, np.ascontiguousarray(inverse), periodic, inside, home, ends)
    low = np.where(periodic, 0.0, ends[0])
    extent = np.where(periodic, 1.0, np.maximum(ends[1] - ends[0], 0.0))
    spans = extent * heights
    shape = _shape(spans, count, cutoff * (1.0 + EDGE) / REACH)
    scale = np.divide(shape, extent, out=np.zeros(3), where=extent > 0)
    width = spans / shape
    reach = np.array([math.ceil(cutoff * (1.0 + 1e-9) / w) if w > 0 else 0 for w in width], dtype=np.int64)
    first = np.zeros(int(shape.prod()) + 1, dtype=np.int64)
    cubes = Cubes(
        np.empty(count, dtype=np.int64), np.empty((count, 3)), np.empty((count, 3), dtype=np.int32), first, shape, reach,
        periodic, cell,
    )  # fmt: skip
    _sort(positions, cell, inside, home, low, scale, shape, first, cubes.atom, cubes.position, cubes.home)
    return cubes


@loops
def _fold(
    positions: np.ndarray,
    inverse: np.ndarray,
    periodic: np.ndarray,
    inside: np.ndarray,
    home: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Fractional coordinates (N, 3), within the cell where it is periodic; the image each atom was moved from; least and greatest."""
    ends[0], ends[1] = np.inf, -np.inf
    for a in range(len(positions)):
        x, y, z = positions[a, 0], positions[a, 1], positions[a, 2]
        for k in range(3):
            fraction = x * inverse[0, k] + y * inverse[1, k] + z * inverse[2, k]
            image = np.floor(fraction) if periodic[k] else 0.0
            home[a, k], inside[a, k] = np.int32(image), fraction - image
            ends[0, k], ends[1, k] = min(ends[0, k], fraction - image), max(ends[1, k], fraction - image)


@loops
def _sort(
    positions: np.ndarray,
    cell: np.ndarray,
    inside: np.ndarray,
    home: np.ndarray,
    low: np.ndarray,
    scale: np.ndarray,
    shape: np.ndarray,
    first: np.ndarray,
    atom: np.ndarray,
    position: np.ndarray,
    homes: np.ndarray,
) -> None:
    """Atoms cube by cube, in each as they came, and where each cube begins (first, of zeros)."""
    count = len(positions)
    cube = np.empty(count, np.int64)
    for a in range(count):
        place = 0
        for k in range(3):
            along = np.int64((inside[a, k] - low[k]) * scale[k])
            place = place * shape[k] + min(max(along, 0), shape[k] - 1)
        cube[a] = place
        first[place + 1] += 1
    for c in range(1, len(first)):
        first[c] += first[c - 1]
    following = first.copy()
    for a in range(count):
        to = following[cube[a]]
        following[cube[a]] += 1
        atom[to] = a
        for k in range(3):
            homes[to, k] = home[a, k]
            moved = home[a, 0] * cell[0, k] + home[a, 1] * cell[1, k] + home[a, 2] * cell[2, k]
            position[to, k] = positions[a, k] - moved


def _shape(spans: np.ndarray, atoms: int, side: float) -> np.ndarray:
    """Cubes along each direction."""
    while True:
        shape = np.maximum(np.floor(spans / side), 1.0)
        if shape.prod() <= MOST_CUBES * atoms + 64:
            return np.asarray(shape.astype(np.int64))
        side *= 1.2


def _guess(cubes: Cubes, cutoff: float) -> int:
    """Pairs of atoms as dense as these are in the cubes that hold any."""
    atoms = len(cubes.atom)
    if not cubes.periodic.all():
        return 64 * atoms + 64  # the cell says nothing about the volume
    filled = int(np.count_nonzero(np.diff(cubes.first)))
    dense = atoms / abs(np.linalg.det(cubes.cell)) * len(cubes.first) / max(1, filled)
    return int(SPARE * atoms * (16 + 0.5 * dense * 4.19 * cutoff**3)) + 64


def _part(cubes: Cubes, cutoff: float, begin: int, end: int, guess: int) -> Pairs:
    """The pairs of some of the sorted atoms."""
    size, told, least = guess, np.zeros(3, dtype=np.int64), np.empty(1)
    while True:
        centre, neighbor = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
        image = np.empty((size, 3), dtype=np.int32)
        _search(
            cubes.atom, cubes.position, cubes.home, cubes.first, cubes.shape, cubes.reach, cubes.periodic, cubes.cell,
            float(cutoff) ** 2, begin, end, centre, neighbor, image, told, least,
        )  # fmt: skip
        found, i, j = told.tolist()
        if found <= size:
            closest = (math.sqrt(least[0]), i, j) if found else None
            return Pairs(centre[:found], neighbor[:found], image[:found], closest)
        size = found


@loops
def _search(
    atom: np.ndarray,
    position: np.ndarray,
    home: np.ndarray,
    first: np.ndarray,
    shape: np.ndarray,
    reach: np.ndarray,
    periodic: np.ndarray,
    cell: np.ndarray,
    limit: float,
    begin: int,
    end: int,
    centre: np.ndarray,
    neighbor: np.ndarray,
    image: np.ndarray,
    told: np.ndarray,
    least: np.ndarray,
) -> None:
    """Pairs of the sorted atoms begin … end with those behind them.

    told: how many pairs there are, with or without room, and the closest two atoms; least: the square of their distance.

    Cubes are looked at in half of all directions: of a pair, seen from either end, one lies in that half. Runs of cubes in
    line along the last direction are runs of sorted atoms.
    """
    room, found = len(centre), 0
    nx, ny, nz = shape[0], shape[1], shape[2]
    runs = 1 + (reach[0] + 1) * (2 * reach[1] + 1) * ((2 * reach[2] + 1) // nz + 2)
    start, stop = np.empty(runs, np.int64), np.empty(runs, np.int64)
    moved, offset = np.zeros((runs, 3), np.int32), np.zeros((runs, 3))
    known, total = -1, 0
    shortest, near, other = np.inf, 0, 0
    for i in range(begin, end):
        # The cube of this atom; atoms of one cube follow each other.
        if first[known + 1] <= i:
            while first[known + 1] <= i:
                known += 1
            # The first run is the rest of this cube.
            total, stop[0] = 1, first[known + 1]
            bx, by, bz = known // (ny * nz), known // nz % ny, known % nz
            for x in range(bx, bx + reach[0] + 1):
                if not periodic[0] and x >= nx:
                    break
                mx = x // nx
                for y in range(by - (reach[1] if x > bx else 0), by + reach[1] + 1):
                    if not periodic[1] and (y < 0 or y >= ny):
                        continue
                    my = y // ny
                    low, high = bz - reach[2], bz + reach[2]
                    if x == bx and y == by:
                        low = bz + 1
                    if not periodic[2]:
                        low, high = max(low, 0), min(high, nz - 1)
                    row = ((x - mx * nx) * ny + y - my * ny) * nz
                    z = low
                    while z <= high:
                        mz = z // nz
                        until = min(high, mz * nz + nz - 1)
                        start[total], stop[total] = first[row + z - mz * nz], first[row + until - mz * nz + 1]
                        if stop[total] > start[total]:
                            moved[total, 0], moved[total, 1], moved[total, 2] = mx, my, mz
                            for k in range(3):
                                offset[total, k] = mx * cell[0, k] + my * cell[1, k] + mz * cell[2, k]
                            total += 1
                        z = until + 1
        start[0] = i + 1
        for run in range(total):
            sx, sy, sz = (
                offset[run, 0] - position[i, 0],
                offset[run, 1] - position[i, 1],
                offset[run, 2] - position[i, 2],
            )
            for j in range(start[run], stop[run]):
                x, y, z = position[j, 0] + sx, position[j, 1] + sy, position[j, 2] + sz
                r = x * x + y * y + z * z
                if r <= limit:
                    if r < shortest:
                        shortest, near, other = r, atom[i], atom[j]
                    if found < room:
                        centre[found], neighbor[found] = atom[i], atom[j]
                        for k in range(3):
                            image[found, k] = home[i, k] - home[j, k] + moved[run, k]
                    found += 1
    told[0], told[1], told[2], least[0] = found, near, other, shortest
