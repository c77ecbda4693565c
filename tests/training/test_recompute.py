"""``training.recompute``: the same gradient, block by block."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.batch import make_batch
from dpa1.config.training import LossConfig, OptimizerConfig, TrainingConfig
from dpa1.errors import RunError
from dpa1.model import blockwise
from dpa1.model import potential as potential_module
from dpa1.model.potential import Potential
from dpa1.training.bias import Pins
from dpa1.training.distributed import World
from dpa1.training.loss import Loss
from dpa1.training.optimizer import Clipper, make_optimizer
from dpa1.training.run import train
from dpa1.training.step import Step
from tests.contracts.systems import CUTOFF, example_options, option_sets, random_frame, random_potential
from tests.training.test_distributed import curve, run_two
from tests.training.toy import toy_config

CPU = torch.device("cpu")


def labelled(seed, atoms, pbc=True, labels=("energy", "forces", "virial")):
    frame, rng = random_frame(seed, atoms, pbc), np.random.default_rng(seed)
    values = {"energy": float(rng.normal()), "forces": rng.normal(size=(atoms, 3)), "virial": rng.normal(size=(3, 3))}
    return frame.replace(**{name: values[name] for name in labels})


def batch_of_all_kinds():
    frames = [
        labelled(1, 7),
        labelled(2, 5, False, ("energy", "forces")),
        labelled(3, 1),
        labelled(4, 6, labels=("forces",)),
    ]
    return make_batch(frames, CUTOFF)


def make_step(potential, loss, pins=None, again=False):
    parameters = [p for p in potential.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, OptimizerConfig(kind="adam"))
    return Step(
        potential, Loss(loss), optimizer, Clipper(TrainingConfig(), CPU), World(0, 1, CPU), pins, recompute=again
    )


def gradient(potential):
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in potential.parameters()])  # fmt: skip


def compare(potential, batch, loss, pins=None):
    """Gradient, loss and error sums with and without the graph of the whole batch."""
    found = []
    for again in (False, True):
        step = make_step(potential, loss, pins, again)
        potential.zero_grad(set_to_none=True)
        if again:
            value = step.backward(batch, 0.7)
        else:
            value = step.losses(batch, 0.7).sum()
            value.backward()
        found.append((gradient(potential), value.detach(), step.sums))
    for a, b in zip(*found, strict=True):
        assert a.abs().max() > 0
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12 * float(a.abs().max()))


LOSSES = {
    "mse": LossConfig(energy=1, force=2, virial=3),
    "mae": LossConfig(energy=1, force=2, virial=3, kind="mae"),
    "huber": LossConfig(energy=1, force=2, virial=3, kind="huber", huber_delta=0.5),
    "force norm": LossConfig(energy=1, force=2, kind="mae", force_norm=True),
    "intensive": LossConfig(energy=1, force=2, virial=3, intensive=True),
    "energy alone": LossConfig(energy=1, force=0),
    "force alone": LossConfig(energy=0, force=1),
    "virial alone": LossConfig(energy=0, force=0, virial=1),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks even for a few atoms."""
    for module in (potential_module, blockwise):
        monkeypatch.setattr(module, "CHUNK_SLOTS", 100)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("small_blocks")
def test_every_loss(name):
    potential = random_potential(example_options())
    compare(potential, batch_of_all_kinds(), LOSSES[name])


@settings(max_examples=15, deadline=None)
@given(option_sets(), st.integers(0, 99))
def test_every_architecture(options, seed):
    compare(random_potential(options, seed), batch_of_all_kinds(), LOSSES["mse"])


@pytest.mark.usefixtures("small_blocks")
def test_pinned_atoms():
    potential = random_potential(example_options())
    compare(potential, batch_of_all_kinds(), LOSSES["mse"], Pins(potential, {"H": -1.0, "Cu": 2.0}))


def test_nothing_is_counted_twice_when_memory_runs_out(monkeypatch):
    potential = random_potential(example_options())
    evaluate, refused = Potential._evaluate, []

    def scarce(self, plan, *rest):
        result = evaluate(self, plan, *rest)
        if torch.is_grad_enabled() and plan.pairs.numel() > 150:
            refused.append(plan)
            raise MemoryError
        return result

    batch, step = batch_of_all_kinds(), make_step(potential, LOSSES["mse"], again=True)
    step.backward(batch, 0.7)
    expected = gradient(potential)
    potential.zero_grad(set_to_none=True)
    monkeypatch.setattr(Potential, "_evaluate", scarce)
    step.backward(batch, 0.7)
    assert refused
    assert torch.allclose(gradient(potential), expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


def test_too_little_memory_names_the_remedy(monkeypatch):
    potential = random_potential(example_options())

    def nothing(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    monkeypatch.setattr(Potential, "_evaluate", nothing)
    with pytest.raises(
        RunError, match=r"19 atoms .* do not fit .* lower training.batch_atoms, or set training.recompute"
    ):
        make_step(potential, LOSSES["mse"])([batch_of_all_kinds()], 1e-3, 1.0)


def test_the_run_is_the_same(tmp_path):
    common = {"model": {"precision": "float64"}, "loss": {"energy": 1, "force": 1, "virial": 1}}
    for name, again in (("kept", False), ("again", True)):
        training = {"recompute": again, "ema": 0.9}
        train(toy_config(tmp_path, **common, training=training, output=str(tmp_path / name)), quiet=True)
    for a, b in zip(curve(tmp_path / "kept"), curve(tmp_path / "again"), strict=True):
        assert {k: v for k, v in a.items() if k != "waiting"} == pytest.approx(
            {k: v for k, v in b.items() if k != "waiting"}, rel=1e-7
        )


@pytest.mark.parametrize("convention", [{}, {"convention": "deepmd", "sel": 60}], ids=["smooth", "deepmd"])
def test_two_processes(tmp_path, convention):
    common = {"model": {"precision": "float64", **convention}}
    config = toy_config(tmp_path, **common, training={"recompute": True}, output=str(tmp_path / "two"))
    done = run_two(config, tmp_path)
    assert done.returncode == 0, done.stderr
    config = toy_config(tmp_path, **common, training={"accumulate": 2}, output=str(tmp_path / "one"))
    train(config, quiet=True)
    for a, b in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert {k: v for k, v in a.items() if k != "waiting"} == pytest.approx(
            {k: v for k, v in b.items() if k != "waiting"}, rel=1e-7
        )
