"""Relaxation ends where the forces (and the stress) vanish, and says so when it does not."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc100
from ase.calculators.emt import EMT

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
    # ASE's own copper, which has a minimum in volume as a random model need not.
    for pressure in (0.0, 5.0):
        atoms = copper()
        end = relax(atoms, EMT(), cell=True, pressure=pressure, fmax=1e-3, steps=100)
        assert end.converged
        np.testing.assert_allclose(atoms.get_stress() / units.GPa, [-pressure] * 3 + [0.0] * 3, atol=0.02)


def test_errors(calculator):
    with pytest.raises(UserError, match="periodic in all three"):
        relax(fcc100("Cu", (1, 1, 2), vacuum=4.0), calculator, cell=True)
    with pytest.raises(UserError, match="did you mean 'lbfgs'"):
        relax(copper(), calculator, optimizer="lbfg")
    broken = random_potential(example_options())
    broken.energy_bias[:] = np.inf
    with pytest.raises(RunError, match="not finite"):
        relax(copper(), broken.calculator())
