"""A step of fixed shape gives what the ordinary evaluation gives, whatever happens to the structure meanwhile."""

import copy
import logging

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from torch.utils._python_dispatch import TorchDispatchMode

from dpa1.errors import UserError
from dpa1.kernels import dispatch
from dpa1.simulate import step
from dpa1.simulate.integrators import set_velocities
from tests.contracts.systems import example_options, random_potential

DEEPMD = {"convention": "deepmd", "mean_neighbors": None, "sel": 40}
MODELS = {
    "no attention": ({"attention_layers": 0}, False),
    "no attention, tabulated": ({"attention_layers": 0}, True),
    "attention": ({"attention_layers": 2}, False),
    "attention, tabulated": ({"attention_layers": 2}, True),
    "strip, tabulated": ({"attention_layers": 1, "type_input": "strip"}, True),
    "deepmd": ({"attention_layers": 1, **DEEPMD}, False),
    "deepmd, mean subtracted": ({"attention_layers": 1, **DEEPMD, "subtract_mean": True}, False),
    "deepmd, smooth attention": ({"attention_layers": 1, **DEEPMD, "smooth_attention": True}, True),
    "excluded": ({"attention_layers": 1, "exclude_pairs": (("Cu", "Cu"),), "exclude_elements": ("H",)}, False),
    "excluded from the list": ({"attention_layers": 1, **DEEPMD, "exclude_model_pairs": (("Cu", "H"),)}, False),
}


def alloy(size=2, seed=0):
    atoms = bulk("Cu", cubic=True) * size
    atoms.symbols[::5] = "H"
    atoms.rattle(0.1, seed=seed)
    return atoms


def calculators(options, tabulate=False, **more):
    potential = random_potential(example_options(**options))
    fixed = potential.calculator(fixed_shapes=True, tabulate=tabulate, **more)
    return fixed, potential.calculator(tabulate=tabulate, **more)


def assert_same(fixed, ordinary, atoms, bound=1e-11):
    for key in ("energy", "energies", "forces", "stress"):
        a, b = fixed.get_property(key, atoms), ordinary.get_property(key, atoms)
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound, err_msg=key)
    np.testing.assert_array_equal(fixed.coordination, ordinary.coordination)


@pytest.mark.parametrize("name", MODELS)
def test_same_numbers_along_a_trajectory(name):
    options, tabulate = MODELS[name]
    fixed, ordinary = calculators(options, tabulate, skin=0.4)
    atoms = alloy()
    atoms.calc = fixed
    set_velocities(atoms, 3000.0, np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 2.0 * units.fs)
    for _ in range(12):
        dynamics.run(1)
        assert_same(fixed, ordinary, atoms)
    assert fixed.fixed_step.recordings == 1
    assert fixed.fixed_step.refusal == ""
    assert str(fixed.fixed_step).startswith("step of fixed shape, 1 recorded, differs by ")
    assert fixed.neighbors.builds > 1


def test_same_numbers_while_the_cell_changes():
    fixed, ordinary = calculators({"attention_layers": 1})
    atoms = alloy()
    atoms.calc = fixed
    set_velocities(atoms, 600.0, np.random.default_rng(0))
    dynamics = IsotropicMTKNPT(
        atoms, 1.0 * units.fs, temperature_K=600, pressure_au=20 * units.GPa, tdamp=20 * units.fs, pdamp=50 * units.fs
    )
    volume = atoms.get_volume()
    for _ in range(8):
        dynamics.run(1)
        assert_same(fixed, ordinary, atoms)
    assert abs(atoms.get_volume() / volume - 1.0) > 1e-6


def test_buffers_grow_and_the_step_is_recorded_again():
    fixed, ordinary = calculators({"attention_layers": 1}, skin=0.3)
    atoms = alloy()
    cell, recordings = np.array(atoms.cell), []
    for scale in (1.0, 0.995, 0.85, 0.7, 0.75, 1.0):
        atoms.set_cell(scale * cell, scale_atoms=True)
        assert_same(fixed, ordinary, atoms)
        recordings.append(fixed.fixed_step.recordings)
    assert recordings[1] == 1
    assert recordings[3] > recordings[1]
    assert recordings[3:] == [recordings[3]] * 3  # what is large enough stays


def test_neighbors_that_outgrow_a_row_between_two_searches():
    """The list holds, but more of its atoms have come within the cutoff than the row was made for."""
    fixed, ordinary = calculators({"attention_layers": 1}, skin=3.0)
    atoms = alloy(2)
    for scale in (1.0, 0.93, 0.87):
        atoms.set_cell(scale * np.eye(3) * 7.22, scale_atoms=True)
        assert_same(fixed, ordinary, atoms)
    assert fixed.neighbors.builds == 1
    assert fixed.fixed_step.recordings > 1


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_open_directions_other_structures_and_lone_atoms(pbc):
    fixed, ordinary = calculators({"attention_layers": 1})
    slab = alloy()
    slab.pbc = pbc
    lone = bulk("Cu", cubic=True)[:1]
    lone.set_cell(np.eye(3) * 30.0)
    for atoms in (slab, lone, alloy(1), slab):
        assert_same(fixed, ordinary, atoms)
        assert fixed.fixed_step.refusal == ""


def test_float32_is_within_its_rounding():
    potential = random_potential(example_options(attention_layers=2))
    atoms = alloy()
    fixed = potential.calculator(fixed_shapes=True, dtype="float32")
    forces = potential.calculator(dtype="float32").get_forces(atoms)
    assert np.abs(fixed.get_forces(atoms) - forces).max() < 1e-5
    assert fixed.fixed_step.error < 1e-5


def test_a_step_that_differs_is_not_used(monkeypatch, caplog):
    fixed, ordinary = calculators({"attention_layers": 1})
    right = step.FixedShapes.evaluate
    monkeypatch.setattr(step.FixedShapes, "evaluate", lambda self: right(self) * (1.0 + 1e-6))
    atoms = alloy()
    with caplog.at_level(logging.INFO, "dpa1"):
        for seed in range(3):
            atoms.rattle(0.3, seed=seed)
            assert_same(fixed, ordinary, atoms)
    assert fixed.neighbors.builds == 3
    assert fixed.fixed_step.recordings == 1
    assert [r.levelname for r in caplog.records if "differs from the reference" in r.message] == ["WARNING"]


def test_a_recording_that_fails_is_said_and_replaced(monkeypatch, caplog):
    fixed, ordinary = calculators({"attention_layers": 0})

    def fail(self):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step.FixedShapes, "evaluate", fail)
    assert_same(fixed, ordinary, alloy())
    assert "it failed (operation not permitted when stream is capturing)" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [({**DEEPMD, "sel": 9}, "more than the 9 neighbors"), ({}, "keep the device busy")],
)
def test_what_it_cannot_do_is_said_once(options, reason, monkeypatch, caplog):
    if not options:
        monkeypatch.setattr(step, "MAX_SLOTS", 100)
    fixed, ordinary = calculators(options)
    atoms = alloy()
    with caplog.at_level(logging.INFO, "dpa1"):
        for seed in range(2):
            atoms.rattle(0.4, seed=seed)
            assert_same(fixed, ordinary, atoms)
    assert reason in fixed.fixed_step.refusal
    assert str(fixed.fixed_step) == f"no step of fixed shape: {fixed.fixed_step.refusal}"
    assert sum(reason in record.message for record in caplog.records) == 1


def test_contacts_closer_than_the_tables():
    fixed, ordinary = calculators({"attention_layers": 1}, True)
    atoms = alloy()
    assert_same(fixed, ordinary, atoms)
    start = atoms.positions.copy()
    atoms.positions[1] = atoms.positions[0] + [0.3, 0.0, 0.0]
    assert_same(fixed, ordinary, atoms, 1e-9)
    assert "where the tables end" in fixed.fixed_step.refusal
    atoms.positions[:] = start
    assert_same(fixed, ordinary, atoms)
    assert fixed.fixed_step.refusal == ""
    atoms.positions[1] = atoms.positions[0] + 0.01
    with pytest.raises(UserError, match="atoms 0 and 1"):
        fixed.get_forces(atoms)


class Recorder(TorchDispatchMode):
    """Every operation with the shapes of its results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        shapes = [tuple(x.shape) for x in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(x)]
        self.operations.append((str(function), shapes))
        return out


@pytest.mark.parametrize("paths", ["those of a CPU", "the reference"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_for_the_device(name, paths, monkeypatch):
    """No shape that follows the data, no number read back or sent on the way: a CUDA graph can hold it."""
    if paths == "the reference":
        monkeypatch.setattr(dispatch, "PATHS", [p for p in dispatch.PATHS if p.operation == "spline"])
    options, tabulate = MODELS[name]
    calculator = calculators(options, tabulate, skin=2.0)[0]
    atoms, seen = alloy(), []
    for seed in (1, 2):
        atoms.rattle(0.1, seed=seed)
        calculator.get_forces(atoms)
        with Recorder() as recorder:
            calculator.fixed_step._fixed.evaluate()
        seen.append(recorder.operations)
    assert len(seen[0]) > 50
    assert seen[0] == seen[1]
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal")
    assert not [operation for operation, _ in seen[0] if operation.split(".")[1] in waits]


def test_copies_record_for_themselves():
    fixed, ordinary = calculators({"attention_layers": 1})
    atoms = alloy()
    fixed.get_forces(atoms)
    copied = copy.deepcopy(fixed)
    atoms.rattle(0.1, seed=5)
    assert_same(copied, ordinary, atoms)
    assert copied.fixed_step.recordings == 1
    assert copied.fixed_step.neighbors is copied.neighbors


def test_report_lists_it():
    entries = step.report("cpu")
    assert [entry["precision"] for entry in entries] == ["float32", "float64"]
    assert all(entry["ok"] and 0 <= entry["error"] < 1e-4 for entry in entries)
