"""Translation, rotation, reflection, atom order, supercell, choice of unit cell: 1e-10 relative."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tests.contracts.systems import example_options, option_sets, predict, random_frame, random_potential, relative

PBC = st.sampled_from([True, False, (True, True, False), (False, True, False)])
few = settings(max_examples=40, deadline=None)


def same(potential, frame, other, rotation=None, order=slice(None)):
    """Energy equal; forces, virial and atomic energies equal up to the rotation and the order of the atoms."""
    rotation = np.eye(3) if rotation is None else rotation
    a, b = predict(potential, frame), predict(potential, other)
    assert relative(b["energy"], a["energy"]) < 1e-10
    assert relative(b["atomic_energy"], a["atomic_energy"][order]) < 1e-10
    assert relative(b["forces"], a["forces"][order] @ rotation.T) < 1e-10
    assert relative(b["virial"][0], rotation @ a["virial"][0] @ rotation.T) < 1e-10


@few
@given(option_sets(), PBC, st.integers(0, 99))
def test_translation(options, pbc, seed):
    frame = random_frame(seed, pbc=pbc)
    moved = frame.replace(positions=frame.positions + np.array([13.7, -4.2, 0.3]))
    same(random_potential(options, seed), frame, moved)


@few
@given(option_sets(), PBC, st.integers(0, 99), st.booleans())
def test_rotation_and_reflection(options, pbc, seed, reflect):
    frame = random_frame(seed, pbc=pbc)
    rotation = Rotation.random(random_state=seed).as_matrix() * (-1 if reflect else 1)
    turned = frame.replace(positions=frame.positions @ rotation.T, cell=frame.cell @ rotation.T)
    same(random_potential(options, seed), frame, turned, rotation)


@few
@given(option_sets(), PBC, st.integers(0, 99))
def test_order_of_atoms(options, pbc, seed):
    frame = random_frame(seed, pbc=pbc)
    order = np.random.default_rng(seed).permutation(len(frame))
    shuffled = frame.replace(positions=frame.positions[order], numbers=frame.numbers[order])
    same(random_potential(options, seed), frame, shuffled, order=order)


@few
@given(option_sets(), st.integers(0, 99), st.integers(0, 2))
def test_supercell_is_extensive(options, seed, axis):
    frame = random_frame(seed)
    cell = frame.cell.copy()
    cell[axis] *= 2
    positions = np.vstack([frame.positions, frame.positions + frame.cell[axis]])
    double = frame.replace(numbers=np.tile(frame.numbers, 2), positions=positions, cell=cell)
    potential = random_potential(options, seed)
    a, b = predict(potential, frame), predict(potential, double)
    assert relative(b["energy"], 2 * a["energy"]) < 1e-10
    assert relative(b["forces"], np.tile(a["forces"], (2, 1))) < 1e-10
    assert relative(b["virial"], 2 * a["virial"]) < 1e-10


@few
@given(option_sets(), st.integers(0, 99))
def test_choice_of_unit_cell(options, seed):
    """Another basis of the same lattice (left-handed too) and atoms moved to other images."""
    frame = random_frame(seed)
    basis = np.array([[1, 1, 0], [0, -1, 0], [0, 1, 1]])
    images = np.random.default_rng(seed).integers(-2, 3, (len(frame), 3))
    other = frame.replace(cell=basis @ frame.cell, positions=frame.positions + images @ frame.cell)
    same(random_potential(options, seed), frame, other)


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), False])
def test_vacuum_equals_no_periodicity(pbc):
    """A direction with a long cell and no neighbours across it gives what a non-periodic direction gives."""
    potential = random_potential(example_options())
    frame = random_frame(3, pbc=pbc)
    cell = np.where(np.array(frame.pbc)[:, None], frame.cell, 0.0)
    missing = ~np.array(frame.pbc)
    normal = np.linalg.svd(cell[frame.pbc])[2][3 - missing.sum() :] if frame.pbc.any() else np.eye(3)
    cell[missing] = normal * 60.0
    same(potential, frame, frame.replace(cell=cell, pbc=np.array([True] * 3)))
