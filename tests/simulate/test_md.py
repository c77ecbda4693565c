"""MD: conserved energy, right temperature and pressure control, exact restarts, and a clear end when atoms fly apart."""

import csv
import shutil

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc100, molecule
from ase.constraints import FixAtoms
from ase.io import read

from dpa1.config.base import parse
from dpa1.container import write_container
from dpa1.errors import RunError, UserError
from dpa1.model.potential import Potential
from dpa1.simulate import md
from dpa1.simulate.integrators import set_velocities, temperature
from dpa1.simulate.settings import MDSettings
from tests.contracts.systems import example_options, random_potential

OPTIONS = example_options(cutoff=3.0, attention_layers=1)


def settings(**values):
    return parse(MDSettings, {"temperature": 300.0, "timestep": 2.0, "every": 5, "restart_every": 10, **values}, "md")


@pytest.fixture(scope="module")
def potential():
    return random_potential(OPTIONS)


def crystal():
    atoms = bulk("Cu", cubic=True) * 2
    atoms.rattle(0.03, seed=1)
    return atoms


def run(potential, folder, steps, atoms=None, *, resume=False, **values):
    atoms = crystal() if atoms is None else atoms
    return md.run_md(atoms, potential.calculator(), settings(**values), steps, folder, resume=resume), atoms


def rows(folder):
    with (folder / "thermo.csv").open() as file:
        return list(csv.DictReader(file))


def test_nve_conserves_energy(potential, tmp_path):
    last, atoms = run(potential, tmp_path, 30, ensemble="nve")
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table] == list(range(0, 31, 5))
    drift = [abs(float(row["drift_meV_per_atom"])) for row in table]
    assert max(drift) < 0.05
    assert max(float(row["kinetic_eV"]) for row in table) > 0.5
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-8
    assert last["step"] == 30
    assert float(table[0]["temperature_K"]) == pytest.approx(300.0)


def test_drift_falls_with_the_square_of_the_timestep(potential, tmp_path):
    worst = []
    for timestep in (4.0, 2.0):
        folder = tmp_path / str(timestep)
        run(potential, folder, round(40 / timestep), ensemble="nve", timestep=timestep, every=1)
        worst.append(max(abs(float(row["drift_meV_per_atom"])) for row in rows(folder)))
    assert worst[1] < 0.4 * worst[0]


@pytest.mark.parametrize("values", [{"ensemble": "nve"}, {}, {"pressure": 2.0}], ids=["nve", "nvt", "npt"])
def test_resumed_run_equals_the_uninterrupted_one_bit_by_bit(potential, tmp_path, values):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, expected = run(potential, whole, 30, **values)
    run(potential, parts, 20, **values)
    # As if killed between the restart file of step 20 and the end: the log has rows beyond it.
    with (parts / "thermo.csv").open("a") as file:
        file.write("25,50.0,1,1,1,1,1,1,1\n27,half a ro")
    with (parts / "trajectory.xyz").open("a") as file:
        file.write("32\nhalf a fra")
    _, atoms = run(potential, parts, 30, resume=True, **values)
    assert np.array_equal(atoms.positions, expected.positions)
    assert np.array_equal(atoms.get_momenta(), expected.get_momenta())
    assert np.array_equal(atoms.cell, expected.cell)
    for name in ("thermo.csv", "trajectory.xyz", "final.xyz"):
        assert (parts / name).read_text() == (whole / name).read_text(), name


@pytest.mark.parametrize("values", [{}, {"pressure": 0.0}], ids=["nvt", "npt"])
def test_thermostat_and_conserved_energy(potential, tmp_path, values):
    run(potential, tmp_path, 60, thermostat_time=20.0, barostat_time=200.0, **values)
    table = rows(tmp_path)
    late = [float(row["temperature_K"]) for row in table[len(table) // 3 :]]
    assert 220 < np.mean(late) < 380
    assert max(abs(float(row["drift_meV_per_atom"])) for row in table) < 0.5
    total = [float(row["total_eV"]) for row in table]
    assert np.ptp(total) > 0.1  # the thermostat really exchanges energy


def test_barostat_moves_the_volume_the_right_way(potential, tmp_path):
    pressed, _ = run(potential, tmp_path / "a", 30, pressure=5.0, barostat_time=200.0)
    stretched, _ = run(potential, tmp_path / "b", 30, pressure=-1.0, barostat_time=200.0)
    assert pressed["volume_A3"] < stretched["volume_A3"]


def test_pressure_is_the_derivative_of_the_energy_plus_the_ideal_gas(potential, tmp_path):
    row, atoms = run(potential, tmp_path, 5, ensemble="nve")
    calculator, energies = potential.calculator(), []
    for factor in (1 - 1e-5, 1 + 1e-5):
        other = atoms.copy()
        other.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
        energies.append(calculator.get_potential_energy(other))
    volume = atoms.get_volume()
    static = -(energies[1] - energies[0]) / (2e-5 * volume)
    ideal = 2 * atoms.get_kinetic_energy() / (3 * volume)
    assert row["pressure_GPa"] == pytest.approx((static + ideal) / units.GPa, rel=1e-5)


def test_trajectory_carries_what_a_trained_model_needs(potential, tmp_path):
    run(potential, tmp_path, 10, ensemble="nve")
    frames = read(tmp_path / "trajectory.xyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 5, 10]
    last = frames[-1]
    assert last.get_momenta().shape == (32, 3)
    energy = potential.calculator().get_potential_energy(last)
    assert last.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    assert float(rows(tmp_path)[-1]["potential_eV"]) == pytest.approx(energy, abs=1e-5)


@pytest.mark.parametrize("kind", ["slab", "wire", "molecule", "atom"])
def test_partly_periodic_systems(potential, tmp_path, kind):
    if kind == "slab":
        atoms = fcc100("Cu", (2, 2, 2), vacuum=5.0)
        assert list(atoms.pbc) == [True, True, False]
    elif kind == "wire":
        atoms = Atoms("Cu2", [[0, 0, 0], [2.4, 0.3, 0]], cell=[4.8, 0, 0], pbc=[True, False, False])
    elif kind == "molecule":
        atoms = molecule("H2O")
    else:
        atoms = Atoms("Cu")
    row, _ = run(potential, tmp_path, 10, atoms, timestep=0.5)
    assert np.isnan(row["pressure_GPa"])
    assert rows(tmp_path)[-1]["pressure_GPa"] == ""
    with pytest.raises(UserError, match="periodic in all three"):
        run(potential, tmp_path / "npt", 5, atoms.copy(), pressure=0.0)
    assert not (tmp_path / "npt").exists()


def test_velocities(potential, tmp_path):
    atoms = crystal()
    set_velocities(atoms, 450.0, np.random.default_rng(3))
    assert temperature(atoms) == pytest.approx(450.0)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9
    run(potential, tmp_path / "kept", 1, atoms.copy(), keep_velocities=True, ensemble="nve", every=1)
    assert float(rows(tmp_path / "kept")[0]["temperature_K"]) == pytest.approx(450.0)
    with pytest.raises(UserError, match="no velocities"):
        run(potential, tmp_path / "none", 1, crystal(), keep_velocities=True)
    seeds = [run(potential, tmp_path / f"s{k}", 1, seed=seed)[1].positions for k, seed in enumerate((1, 1, 2))]
    assert np.array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])


def test_stops_when_atoms_fly_apart(potential, tmp_path):
    with pytest.raises(RunError, match=r"stopped after step \d+ .*; the last good frame ends .*trajectory.xyz"):
        run(potential, tmp_path, 40, timestep=10.0, temperature=100000.0, ensemble="nve")
    frames = read(tmp_path / "trajectory.xyz", ":")
    assert all(np.isfinite(frame.positions).all() for frame in frames)
    steps = [frame.info["step"] for frame in frames]
    assert steps == sorted(set(steps))
    final = read(tmp_path / "final.xyz")
    assert np.array_equal(final.positions, frames[-1].positions)


def test_an_atom_that_leaves_the_others_is_noticed(potential, tmp_path):
    atoms = Atoms("Cu2", [[0, 0, 0], [2.9, 0, 0]])
    atoms.set_momenta([[-60, 0, 0], [60, 0, 0]])
    with pytest.raises(RunError, match=r"atom 0 \(Cu\) has no neighbor"):
        run(potential, tmp_path, 50, atoms, keep_velocities=True, ensemble="nve", timestep=0.5, temperature=9e4)


def test_a_structure_that_cannot_move(potential, tmp_path):
    atoms = crystal()
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    with pytest.raises(UserError, match="no atom free to move"):
        run(potential, tmp_path / "fixed", 5, atoms)
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    fixed = atoms.positions[:3].copy()
    run(potential, tmp_path / "partly", 5, atoms)
    assert np.array_equal(atoms.positions[:3], fixed)
    assert float(rows(tmp_path / "partly")[0]["temperature_K"]) == pytest.approx(300.0)


def test_a_resume_that_does_not_fit(potential, tmp_path):
    run(potential, tmp_path, 10)
    with pytest.raises(UserError, match="already holds a run"):
        run(potential, tmp_path, 10)
    with pytest.raises(UserError, match="at step 10 already"):
        run(potential, tmp_path, 10, resume=True)
    with pytest.raises(UserError, match="another structure"):
        run(potential, tmp_path, 20, bulk("Cu", cubic=True), resume=True)
    with pytest.raises(UserError, match="another model"):
        run(random_potential(OPTIONS, seed=9), tmp_path, 20, resume=True)
    other = Potential(potential.config.model_copy(update={"cutoff": 0.9 * potential.cutoff}))
    other.load_state_dict(potential.state_dict())
    with pytest.raises(UserError, match="another model"):
        run(other, tmp_path, 20, resume=True)
    with pytest.raises(UserError, match="no run to resume"):
        run(potential, tmp_path / "empty", 20, resume=True)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path, broken, ignore=lambda *_: ["broken"])
    content = bytearray((broken / "restart.dpa1").read_bytes())
    content[-20] ^= 1
    (broken / "restart.dpa1").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        run(potential, broken, 20, resume=True)
    write_container(broken / "restart.dpa1", "model", 1, {}, {})
    with pytest.raises(UserError, match="holds a model"):
        run(potential, broken, 20, resume=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"ensemble": "npt"}, "needs a pressure"),
        ({"ensemble": "nve", "pressure": 1.0}, "holds the cell fixed"),
        ({"timestep": 0}, "timestep"),
        ({"timestepp": 1}, "did you mean 'timestep'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(UserError, match=message):
        settings(**values)
