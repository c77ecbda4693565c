"""The neighbour list against a brute-force search over images, in every kind of cell."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1 import cell_search
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


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    pbc=st.tuples(*[st.booleans()] * 3),
    edges=st.tuples(*[st.sampled_from([1.5, 6.0, 13.0, 60.0])] * 3),
    atoms=st.sampled_from([1, 2, 30, 200]),
    cutoff=st.sampled_from([1.0, 4.0, 7.5]),
)
def test_the_compiled_search_finds_what_the_library_finds(seed, pbc, edges, atoms, cutoff):
    """In flat, long and mostly empty cells, with atoms outside; whatever room was thought to be enough, on any threads."""
    rng = np.random.default_rng(seed)
    cell = np.diag(edges) + rng.uniform(-0.3, 0.3, (3, 3)) * min(edges)
    frame = make_frame([1] * atoms, rng.uniform(-1.5, 2.5, (atoms, 3)) @ cell, cell, pbc)
    expected = module._by_library(frame, cutoff, 1)
    wanted = module._both_ways(*expected[:3], atoms)
    with pytest.MonkeyPatch.context() as patch:
        for shared, room in ((10**9, None), (1, None), (10**9, 1), (1, 1)):
            patch.setattr(cell_search, "SHARED", shared)
            if room is not None:
                patch.setattr(cell_search, "_guess", lambda *_: 1)
            pairs = cell_search.find_pairs(frame.positions, module.complete_cell(frame), frame.pbc, cutoff, 3)
            found = module._both_ways(*pairs[:3], atoms)
            for name in ("centre", "neighbor", "shift"):
                assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
            assert (pairs.closest is None) == (expected.closest is None)
            if pairs.closest is not None:
                assert pairs.closest[0] == pytest.approx(expected.closest[0], rel=1e-9)


def test_pairs_at_exactly_the_cutoff_across_the_faces_of_a_lattice():
    """Rounding moves atoms over the faces of cubes, and those at zero into the next cell."""
    for scale in (1.0, 0.1, 1 / 3):
        grid = np.stack(np.meshgrid(*[np.arange(6) * scale] * 3, indexing="ij"), -1).reshape(-1, 3) - 1e-17
        frame = make_frame([1] * len(grid), grid, 6 * scale * np.eye(3))
        counts = np.bincount(find_neighbors(frame, 2 * scale * (1 + 1e-12)).centre)
        assert (counts == 32).all()  # 6 + 12 + 8 + 6 of whole numbers within a radius of two


def test_a_search_that_disagrees_is_not_used(monkeypatch, caplog):
    frame = random_frame(0)
    expected = as_set(find_neighbors(frame, 4.0))
    whole = module.find_pairs

    def short(*given):
        centre, neighbor, image, closest = whole(*given)
        return cell_search.Pairs(centre[1:], neighbor[1:], image[1:], closest)

    monkeypatch.setattr(module, "find_pairs", short)
    module.search_error.cache_clear()
    try:
        with caplog.at_level("WARNING", logger="dpa1"):
            assert as_set(find_neighbors(frame, 4.0)) == expected
        (line,) = module.report("cpu")
        assert line["error"] > 0
        assert not line["ok"]
    finally:
        monkeypatch.undo()
        module.search_error.cache_clear()
    assert caplog.text.count("the compiled neighbor search differs") == 1
    assert module.report("cpu")[0]["ok"]


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
