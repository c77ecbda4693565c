"""The neighbour list against a brute-force search over images, in every kind of cell."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1 import neighbors as module
from dpa1.frames import from_ase, make_frame
from dpa1.neighbors import find_neighbors
from tests.contracts.systems import random_frame


def brute_force(frame, cutoff, images=7):
    """Every pair (i, j, S) with 0 < r ≤ cutoff among a generous block of images."""
    spans = [range(-images, images + 1) if periodic else (0,) for periodic in frame.pbc]
    found = set()
    for shift in np.array(np.meshgrid(*spans)).reshape(3, -1).T:
        vectors = frame.positions[None] - frame.positions[:, None] + shift @ frame.cell
        distance = np.linalg.norm(vectors, axis=-1)
        if not shift.any():
            np.fill_diagonal(distance, np.inf)
        found |= {(int(i), int(j), *map(int, shift)) for i, j in np.argwhere(distance <= cutoff)}
    return found


def as_set(neighbors):
    return {
        (int(i), int(j), *map(int, s))
        for i, j, s in zip(neighbors.centre, neighbors.neighbor, neighbors.shift, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([True, False, (True, True, False), (False, True, False), (True, False, True)]),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_equals_brute_force(seed, pbc, atoms, left_handed, unwrapped):
    frame = random_frame(seed, atoms, pbc, edge=3.2)
    if left_handed:
        frame = frame.replace(cell=frame.cell[[1, 0, 2]], pbc=frame.pbc[[1, 0, 2]])
    if unwrapped:
        images = np.random.default_rng(seed).integers(-2, 3, (atoms, 3)) * frame.pbc
        frame = frame.replace(positions=frame.positions + images @ frame.cell)
    neighbors = find_neighbors(frame, 4.0)
    found = as_set(neighbors)
    assert len(found) == len(neighbors.centre)
    assert found == brute_force(frame, 4.0)
    assert (neighbors.distances(frame) <= 4.0 + 1e-12).all()
    rows = list(zip(neighbors.centre, neighbors.neighbor, map(tuple, neighbors.shift), strict=True))
    assert rows == sorted(rows)


@pytest.mark.parametrize(
    ("atoms", "pairs"), [(5, 0), (5, 300), (700, 2 * module.PIECE), (5000, 90), (70_000, 9000), (2**22, 90)]
)
def test_pairs_handed_on_are_those_sorted_by_columns(atoms, pairs):
    rng = np.random.default_rng(0)
    centre, neighbor = rng.integers(0, atoms, (2, pairs))
    shift = rng.integers(-3, 4, (pairs, 3)).astype(np.int32)
    found = module._both_ways(centre, neighbor, shift, atoms)
    columns = module._by_columns(centre, neighbor, shift)
    for name in ("centre", "neighbor", "shift"):
        assert np.array_equal(getattr(found, name), getattr(columns, name))


@pytest.mark.parametrize(("furthest", "slow"), [(module.FAR - 1, False), (module.FAR, True), (2**22, True)])
def test_atoms_far_out(furthest, slow, monkeypatch):
    by_columns, used = module._by_columns, []
    monkeypatch.setattr(module, "_by_columns", lambda *x: used.append(x) or by_columns(*x))
    shift = np.array([[-furthest, 0, furthest], [furthest, 1, 0]], dtype=np.int32)
    found = module._both_ways(np.array([3, 0]), np.array([1, 1]), shift, 5)
    assert bool(used) == slow
    assert found.centre.tolist() == [0, 1, 1, 3]
    assert found.neighbor.tolist() == [1, 0, 3, 1]
    assert found.shift.tolist() == [shift[1].tolist(), (-shift[1]).tolist(), (-shift[0]).tolist(), shift[0].tolist()]


def test_without_numba(monkeypatch):
    atoms = bulk("Cu") * (2, 2, 2)
    expected = find_neighbors(from_ase(atoms), 5.0)
    monkeypatch.setattr(module, "available", lambda: False)
    found = find_neighbors(from_ase(atoms), 5.0)
    for name in ("centre", "neighbor", "shift"):
        assert np.array_equal(getattr(expected, name), getattr(found, name))


def test_order_depends_on_neither_positions_nor_threads():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 2, 2)
    frame = from_ase(atoms)
    moved = frame.replace(positions=frame.positions + 100.0 * np.random.default_rng(0).random(3))
    expected = find_neighbors(frame, 6.0)
    for other in (find_neighbors(frame, 6.0, threads=3), find_neighbors(moved, 6.0)):
        for name in ("centre", "neighbor", "shift"):
            assert np.array_equal(getattr(expected, name), getattr(other, name))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu"), bulk("Cu", cubic=True) * (3, 3, 3), fcc111("Al", (2, 2, 3), vacuum=8.0), molecule("CH3CH2OH"),
        bulk("NaCl", "rocksalt", a=5.6), molecule("H"),
    ],
    ids=str,
)  # fmt: skip
def test_equals_ase(atoms):
    frame = from_ase(atoms)
    expected = primitive_neighbor_list("ijS", frame.pbc, np.array(atoms.cell.complete()), frame.positions, 5.0)
    assert as_set(find_neighbors(frame, 5.0)) == {
        (int(i), int(j), *map(int, s)) for i, j, s in zip(*expected, strict=True)
    }


def test_five_thousand_atoms():
    atoms = bulk("Cu", cubic=True) * (11, 11, 11)
    frame = from_ase(atoms)
    assert len(frame) == 5324
    counts = np.bincount(find_neighbors(frame, 4.0).centre)
    assert (counts == 18).all()


def test_flat_cell_of_a_slab():
    """A slab whose cell has no third vector at all."""
    frame = make_frame([6, 6], [[0, 0, 0], [1.4, 0, 0]], np.diag([2.5, 4.3, 0.0]), pbc=[True, True, False])
    assert as_set(find_neighbors(frame, 3.0)) == brute_force(frame, 3.0)
