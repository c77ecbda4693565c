"""Relaxation ends where the forces (and the stress) vanish, and says so when it does not."""

import numpy as np
import pytest
from ase.build import bulk, fcc100

from dpa1.errors import RunError, UserError
from dpa1.simulate.relax import relax
from tests.contracts.systems import example_options, random_potential


@pytest.fixture(scope="module")
def calculator():
    return random_potential(example_options(cutoff=3.0, attention_layers=0)).calculator()


def copper():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.mark.parametrize(("optimizer", "fmax"), [("bfgs", 1e-4), ("lbfgs", 1e-4), ("fire", 4e-3)])
def test_positions(calculator, optimizer, fmax, tmp_path):
    atoms = copper()
    before = calculator.get_potential_energy(atoms)
    end = relax(atoms, calculator, fmax=fmax, optimizer=optimizer, path=tmp_path / "p.xyz", log=tmp_path / "p.csv")
    assert end.converged
    assert end.fmax < fmax
    assert end.steps > 0
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(end.fmax)
    if optimizer == "bfgs":
        assert end.energy < before
    assert (tmp_path / "p.csv").read_text().count("\n") == end.steps + 2
    np.testing.assert_array_equal(atoms.cell, bulk("Cu", cubic=True).cell)


def test_not_converged(calculator):
    end = relax(copper(), calculator, fmax=1e-12, steps=2)
    assert not end.converged
    assert end.steps == 2


def test_cell_reaches_the_pressure():
    # A random model need not have a minimum of its own: the pressure asked for is close to the present one.
    potential = random_potential(example_options(cutoff=3.0, attention_layers=0), seed=3)
    atoms = copper()
    atoms.calc = potential.calculator()
    target = -np.mean(atoms.get_stress()[:3]) / 0.00624150907 * 0.98
    end = relax(atoms, potential.calculator(), cell=True, pressure=target, fmax=1e-4, steps=200)
    assert end.converged
    assert np.abs(atoms.get_stress() + np.array([1, 1, 1, 0, 0, 0]) * target * 0.00624150907).max() < 1e-4


def test_errors(calculator):
    with pytest.raises(UserError, match="periodic in all three"):
        relax(fcc100("Cu", (1, 1, 2), vacuum=4.0), calculator, cell=True)
    with pytest.raises(UserError, match="did you mean 'lbfgs'"):
        relax(copper(), calculator, optimizer="lbfg")
    broken = random_potential(example_options())
    broken.energy_bias[:] = np.inf
    with pytest.raises(RunError, match="not finite"):
        relax(copper(), broken.calculator())
