"""The ASE calculator gives the model's numbers, with and without a reused neighbour list."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.data import chemical_symbols

import dpa1
from dpa1.errors import RunError, UserError
from dpa1.frames import from_ase, to_ase, voigt_to_matrix
from dpa1.simulate.ase import Dpa1Calculator
from tests.contracts.systems import example_options, predict, random_frame, random_potential

FILES = Path(__file__).parents[1] / "data" / "files"
CONVENTIONS = [{}, {"convention": "deepmd", "mean_neighbors": None, "sel": 12}]


@pytest.fixture
def potential():
    return random_potential(example_options())


def copper(size=2, seed=0, rattle=0.1):
    atoms = bulk("Cu", cubic=True) * size
    atoms.rattle(rattle, seed=seed)
    return atoms


def results(calculator, atoms):
    return {
        "energy": calculator.get_property("energy", atoms),
        "energies": calculator.get_property("energies", atoms),
        "forces": calculator.get_property("forces", atoms),
        "stress": calculator.get_property("stress", atoms),
    }


def assert_same(a, b, tolerance=1e-12):
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("options", CONVENTIONS)
def test_equals_the_potential(options):
    potential = random_potential(example_options(**options))
    frame = random_frame(3)
    expected = predict(potential, frame)
    atoms = to_ase(frame)
    atoms.calc = potential.calculator()
    np.testing.assert_allclose(atoms.get_potential_energy(), expected["energy"][0], rtol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected["atomic_energy"], rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-12)
    np.testing.assert_allclose(atoms.calc.get_descriptor(atoms), expected["descriptor"], rtol=1e-11, atol=1e-13)
    stress = from_ase(atoms).stress
    np.testing.assert_allclose(stress, -expected["virial"][0] / frame.volume, atol=1e-12)


def test_forces_and_stress_are_derivatives_as_ase_takes_them(potential):
    atoms = copper(1)
    atoms.calc = potential.calculator()
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)


@pytest.mark.parametrize("options", CONVENTIONS)
@pytest.mark.parametrize("pbc", [True, (True, True, False), (False, False, True), False])
def test_reused_list_is_exact_along_a_trajectory(options, pbc):
    potential = random_potential(example_options(**options))
    atoms = copper(2)
    atoms.pbc = pbc
    reused, fresh = potential.calculator(skin=0.6), potential.calculator(skin=0.0)
    atoms.calc = reused
    rng = np.random.default_rng(0)
    for _ in range(15):
        atoms.positions += rng.normal([0.4, 0.0, -0.3], 0.03, atoms.positions.shape)
        assert_same(results(reused, atoms), results(fresh, atoms))
    assert reused.neighbors.builds < 6
    assert fresh.neighbors.builds == 15


def test_reused_list_is_exact_while_the_cell_deforms(potential):
    atoms = copper(2)
    reused, fresh = potential.calculator(skin=1.0), potential.calculator(skin=0.0)
    cell, scaled = np.array(atoms.cell), atoms.get_scaled_positions(wrap=False)
    rng = np.random.default_rng(1)
    for step in range(12):
        strain = np.eye(3) + 0.004 * step * np.array([[1, 0.5, 0], [0, -1, 0.3], [0, 0, 0.5]])
        atoms.set_cell(cell @ strain)
        atoms.positions = scaled @ np.array(atoms.cell) + rng.normal(0, 0.02, atoms.positions.shape)
        assert_same(results(reused, atoms), results(fresh, atoms))
    assert reused.neighbors.builds < 4


def test_another_structure_in_the_same_calculator(potential):
    calculator = potential.calculator(skin=2.0)
    for atoms in (copper(1), molecule("H2O", vacuum=3.0), copper(2), copper(1, seed=4)):
        energy = calculator.get_potential_energy(atoms)
        assert energy == pytest.approx(predict(potential, from_ase(atoms))["energy"][0], rel=1e-12)
    slab = copper(1)
    bulk_energy = calculator.get_potential_energy(slab)
    slab.pbc = (True, True, False)
    assert calculator.get_potential_energy(slab) != bulk_energy


def test_restart_is_independent_of_when_the_list_was_built(potential):
    atoms = copper(2)
    calculator = potential.calculator(skin=1.0)
    calculator.get_forces(atoms)
    atoms.rattle(0.05, seed=3)
    forces = calculator.get_forces(atoms)
    assert calculator.neighbors.builds == 1
    assert np.array_equal(forces, potential.calculator(skin=1.0).get_forces(atoms))


def test_stress_needs_a_volume(potential):
    atoms = molecule("H2O")
    atoms.calc = potential.calculator()
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError, match="three vectors"):
        atoms.get_stress()


def test_unknown_element_lists_the_known(potential):
    atoms = Atoms("Au2", [[0, 0, 0], [2.5, 0, 0]])
    atoms.calc = potential.calculator()
    with pytest.raises(UserError, match="does not know Au; it knows H, O, Cu"):
        atoms.get_potential_energy()


def test_precision_and_isolation_of_the_copy(potential):
    atoms = copper(2)
    single = potential.calculator(dtype="float32")
    double = potential.calculator(dtype="float64")
    assert str(potential.dtype) == "torch.float64"
    difference = np.abs(single.get_forces(atoms) - double.get_forces(atoms)).max()
    assert 0 < difference < 1e-5
    before = double.get_potential_energy(atoms)
    potential.energy_bias += 1.0
    double.results.clear()
    assert double.get_potential_energy(atoms) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "float32 or float64"),
        ({"device": "cuda:77"}, "not available"),
        ({"device": "toaster"}, "unknown name"),
        ({"level": "r2scan"}, "unknown level"),
    ],
)
def test_bad_options(potential, options, message):
    with pytest.raises(UserError, match=message):
        Dpa1Calculator(potential, **options)


def test_bad_structures(potential):
    calculator = potential.calculator()
    atoms = copper(1)
    calculator.get_forces(atoms)
    atoms.positions[2, 1] = np.nan
    with pytest.raises(UserError, match="atom 2"):
        calculator.get_forces(atoms)
    atoms = copper(1)
    atoms.positions[3] = atoms.positions[1] + 0.01
    with pytest.raises(UserError, match="atoms 1 and 3"):
        calculator.get_forces(atoms)
    potential.energy_bias[:] = np.nan
    with pytest.raises(RunError, match="not finite"):
        potential.calculator().get_potential_energy(copper(1))


def test_single_atom(potential):
    atoms = Atoms("Cu")
    atoms.calc = potential.calculator()
    assert np.isfinite(atoms.get_potential_energy())
    assert np.array_equal(atoms.get_forces(), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["mlearn_Ge.xyz", "bpa.xyz", "oxides.xyz"])
def test_real_structures(name):
    frames = dpa1.read(FILES / name)[:3]
    elements = tuple(sorted({chemical_symbols[z] for frame in frames for z in frame.numbers}))
    potential = random_potential(example_options(elements=elements))
    calculator = potential.calculator()
    for frame in frames:
        expected = predict(potential, frame)
        atoms = to_ase(frame)
        assert calculator.get_potential_energy(atoms) == pytest.approx(expected["energy"][0], rel=1e-12)
        np.testing.assert_allclose(calculator.get_forces(atoms), expected["forces"], atol=1e-12)
        if frame.pbc.all():
            stress = voigt_to_matrix(calculator.get_stress(atoms))
            np.testing.assert_allclose(stress, -expected["virial"][0] / frame.volume, atol=1e-12)
