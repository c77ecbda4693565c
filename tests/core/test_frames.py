"""Frames: signs and units to and from ASE, and sentences for broken ones."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st

from dpa1.errors import UserError
from dpa1.frames import from_ase, make_frame, matrix_to_voigt, to_ase, voigt_to_matrix


def strained_copper():
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.03], [0, 0, 1.01]]), scale_atoms=True)
    return atoms


def test_virial_is_minus_the_strain_derivative():
    atoms = strained_copper()
    atoms.calc = EMT()
    atoms.get_stress()
    frame = from_ase(atoms)
    h = 1e-5
    for a, b in [(0, 0), (1, 2), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * h / 2
            strain[b, a] += sign * h / 2
            moved = strained_copper()
            moved.set_cell(moved.cell @ (np.eye(3) + strain), scale_atoms=True)
            moved.calc = EMT()
            energies.append(moved.get_potential_energy())
        assert frame.virial[a, b] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-5)


def test_round_trip_through_ase():
    atoms = strained_copper()
    atoms.calc = EMT()
    atoms.get_stress()
    frame = from_ase(atoms, source="a.xyz", index=2)
    again = from_ase(to_ase(frame))
    assert again.energy == frame.energy
    assert np.array_equal(again.forces, frame.forces)
    assert np.allclose(again.virial, frame.virial, rtol=1e-14)
    assert np.allclose(to_ase(frame).get_stress(), atoms.get_stress(), rtol=1e-14)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_voigt_order(values):
    assert np.array_equal(matrix_to_voigt(voigt_to_matrix(np.array(values))), values)
    assert voigt_to_matrix(np.array([1.0, 2, 3, 4, 5, 6])).tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]


GOOD = {"numbers": [1, 8], "positions": [[0, 0, 0], [1, 0, 0]], "source": "w.xyz", "index": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": [[0, 0, 0], [np.nan, 0, 0]]}, "NaN or infinite positions of atom 1"),
        ({"forces": [[0, 0, np.inf], [0, 0, 0]]}, "NaN or infinite forces of atom 0"),
        ({"energy": np.nan}, "NaN or infinite energy"),
        ({"forces": [[0, 0, 0]]}, r"forces have shape \(1, 3\), expected \(2, 3\)"),
        ({"positions": "abc"}, "positions are not numbers"),
        ({"numbers": [1, 119]}, "atom 1 has atomic number 119"),
        ({"numbers": [], "positions": []}, "has no atoms"),
        ({"cell": [[1, 0, 0], [2, 0, 0], [0, 0, 3]], "pbc": True}, "zero volume"),
        ({"cell": np.diag([1.0, 1.0, 0.0]), "pbc": True}, "periodic along c but that cell vector is zero"),
    ],
)
def test_broken_frames_are_named(changes, message):
    with pytest.raises(UserError, match=rf"w\.xyz, frame 7: .*{message}"):
        make_frame(**{**GOOD, **changes})
