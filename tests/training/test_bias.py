"""Energy bias: fit, isolated atoms held exactly, refit at the end."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa1.batch import make_batch
from dpa1.data.read import read
from dpa1.errors import UserError
from dpa1.model.file import load_model
from dpa1.training.bias import Pins
from dpa1.training.run import train
from tests.training.toy import emt_frames, toy_config


def atom(symbol, energy, cell=None):
    atoms = Atoms(symbol, cell=cell, pbc=cell is not None)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def energy_of(potential, frames):
    return potential.predict(make_batch(frames, potential.cutoff), forces=False, virial=False)["energy"].tolist()


def test_isolated_atoms_are_exact_after_training(tmp_path):
    frames = [*emt_frames(12), atom("Cu", -3.25), atom("Al", -1.5, cell=[12, 12, 12]), atom("Cu", 99.0, cell=[2.5] * 3)]
    frames[-1].calc.results["energy"] = -3.4  # sees its own images: a crystal, not an isolated atom
    write(tmp_path / "train.xyz", frames)
    result = train(toy_config(tmp_path, training={"ema": 0.5}), quiet=True)
    potential = load_model(result.model)
    assert energy_of(potential, read(tmp_path / "train.xyz")[12:14]) == pytest.approx([-3.25, -1.5], abs=1e-6)
    best = load_model(tmp_path / "run/best.dpa1")
    assert energy_of(best, read(tmp_path / "train.xyz")[12:14]) == pytest.approx([-3.25, -1.5], abs=1e-6)


def test_pins_give_the_exact_gradient():
    from dpa1.config.model import ModelConfig
    from dpa1.frames import from_ase
    from dpa1.model.potential import Potential
    from tests.training.toy import MODEL

    torch.manual_seed(1)
    potential = Potential(ModelConfig(**MODEL, elements=("Al", "Cu"), mean_neighbors=18, precision="float64"))
    batch = make_batch([from_ase(a) for a in emt_frames(2)], potential.cutoff)
    pins = Pins(potential, {"Cu": -3.0})

    def energy():
        extra = pins.apply(potential, batch)
        return (potential.predict(batch, create_graph=True)["energy"] + extra).sum()

    weight = potential.fitting.output.weight
    (gradient,) = torch.autograd.grad(energy(), weight)
    numeric = []
    for h in (1e-4, -1e-4):
        weight.data[3] += h
        numeric.append(energy().item())
        weight.data[3] -= h
    assert (numeric[0] - numeric[1]) / 2e-4 == pytest.approx(gradient[3].item(), rel=1e-6)


def test_refit_removes_the_residual_of_each_element(tmp_path):
    result = train(toy_config(tmp_path, data={"valid": None}), quiet=True)
    potential, frames = load_model(result.model), read(tmp_path / "train.xyz")
    counts = np.array([[(f.numbers == z).sum() for z in (13, 29)] for f in frames]) / 8
    residual = np.array([f.energy for f in frames]) - energy_of(potential, frames)
    assert counts.T @ residual == pytest.approx([0, 0], abs=1e-4)
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("rank 2 of 2") == 2


def test_given_bias_is_kept(tmp_path):
    result = train(toy_config(tmp_path, training={"energy_bias": {"Cu": -1.25}}), quiet=True)
    potential = load_model(result.model)
    assert potential.energy_bias[0, potential.elements.index("Cu")] == -1.25
    with pytest.raises(UserError, match=r"energy_bias.*Xe is no element of the model"):
        train(toy_config(tmp_path, training={"energy_bias": {"Xe": 0.0}}, output=str(tmp_path / "b")), quiet=True)


def test_tied_elements_are_reported(tmp_path):
    frames = emt_frames(6)
    for atoms in frames:
        atoms.symbols = "Cu4Al4"
    write(tmp_path / "train.xyz", frames)
    train(toy_config(tmp_path), quiet=True)
    assert "rank 1 of 2" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize(("kind", "bent"), [("mse", True), ("mae", False), ("huber", False)])
def test_one_broken_frame_bends_the_refit_of_a_squared_loss_alone(tmp_path, kind, bent):
    frames = emt_frames(40)
    for atoms in frames[:2]:
        atoms.calc.results["energy"] += 400.0
    write(tmp_path / "train.xyz", frames)
    loss = {"kind": kind, "energy": 0.0, "force": 1.0}
    options = {"data": {"valid": None}, "training": {"steps": 2}, "loss": loss}
    potential = load_model(train(toy_config(tmp_path, **options), quiet=True).model)
    good = read(tmp_path / "train.xyz")[2:]
    residual = np.array([f.energy for f in good]) - energy_of(potential, good)
    assert (abs(np.median(residual)) / 8 > 1.0) == bent
