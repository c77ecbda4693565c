"""A model file and data for the command line."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa1.model.file import save_model
from tests.contracts.systems import example_options, random_potential


@pytest.fixture(scope="session")
def potential():
    found = random_potential(example_options(cutoff=3.0, attention_layers=1))
    found.info = {"program": "dpa1 0.1.0", "licence": "CC0-1.0", "trained_on": "nothing: random weights"}
    return found


@pytest.fixture(scope="session")
def model(potential, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.dpa1"
    save_model(potential, path)
    return path


@pytest.fixture(scope="session")
def data(potential, tmp_path_factory):
    """Two labelled sets: the second without virials and with one frame without forces."""
    folder = tmp_path_factory.mktemp("data")
    calculator = potential.calculator()
    for name, count in (("a.xyz", 4), ("b.xyz", 3)):
        frames = []
        for k in range(count):
            atoms = bulk("Cu", cubic=True)
            atoms.symbols[:k] = "O"
            atoms.rattle(0.05, seed=k)
            rng = np.random.default_rng(k)
            labels = {"energy": calculator.get_potential_energy(atoms) + 0.1}
            if name == "a.xyz" or k:
                labels["forces"] = calculator.get_forces(atoms) + rng.normal(0, 0.2, (4, 3))
            if name == "a.xyz":
                labels["stress"] = calculator.get_stress(atoms) + 0.01
            atoms.calc = SinglePointCalculator(atoms, **labels)
            frames.append(atoms)
        write(folder / name, frames)
    return folder


@pytest.fixture(scope="session")
def structure(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "copper.xyz"
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    write(path, atoms)
    return path
