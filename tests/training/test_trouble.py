"""A run that goes wrong says which frame, file and quantity, writes the frame out and keeps the last good checkpoint."""

import math

import numpy as np
import pytest
import torch
from ase.io import read, write

import dpa1.training.from_scratch as from_scratch
from dpa1.errors import RunError, UserError
from dpa1.training.checkpoint import checkpoints
from dpa1.training.run import train
from dpa1.training.trainer import Trainer
from tests.training.toy import emt_frames, toy_config


def poison(monkeypatch, frame, field, value):
    """Let one frame of the training data turn bad after it was read and checked."""
    original = from_scratch.open_checked

    def opened(config):
        data = original(config)
        dataset = data.train
        whole = getattr(dataset, "whole", dataset)
        place = next(i for i, f in enumerate(whole.frames) if f.index == frame)
        whole.frames[place] = whole.frames[place].replace(**{field: value(whole.frames[place])})
        return data

    monkeypatch.setattr(from_scratch, "open_checked", opened)


@pytest.mark.parametrize(
    ("field", "value", "quantity"),
    [
        ("energy", lambda f: math.inf, "label 'energy'"),
        ("forces", lambda f: np.where(np.arange(3 * len(f)).reshape(-1, 3) == 4, np.nan, f.forces), "label 'forces'"),
        ("forces", lambda f: f.forces * 1e200, "loss"),
    ],
)
def test_a_bad_frame_is_named_and_written_out(tmp_path, monkeypatch, field, value, quantity):
    poison(monkeypatch, 7, field, value)
    config = toy_config(tmp_path, data={"valid": None}, training={"checkpoint_every": 1, "refit_bias": False})
    with pytest.raises(RunError) as caught:
        train(config, quiet=True)
    message = str(caught.value)
    assert quantity in message
    assert "train.xyz, frame 7 is not finite" in message
    (written,) = (tmp_path / "run").glob("bad-frame-step-*.xyz")
    assert str(written) in message
    assert len(read(written)) == 8
    kept = checkpoints(tmp_path / "run/checkpoints")
    assert kept[-1:] == [p for p in kept if p.name in message]


def test_broken_weights_are_named(tmp_path, monkeypatch):
    original = Trainer.run

    def spoiled(self):
        with torch.no_grad():
            next(iter(self.potential.parameters())).fill_(float("nan"))
        original(self)

    monkeypatch.setattr(Trainer, "run", spoiled)
    with pytest.raises(RunError, match=r"the weights descriptor.* are not finite; lower training\.learning_rate"):
        train(toy_config(tmp_path), quiet=True)


def test_a_label_that_no_frame_has_stops_before_training(tmp_path):
    frames = emt_frames(4)
    for atoms in frames:
        atoms.calc.results.pop("stress")
    write(tmp_path / "train.xyz", frames)
    with pytest.raises(UserError, match="virial"):
        train(toy_config(tmp_path, loss={"virial": 1.0}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_element_only_in_the_validation_data_is_named(tmp_path):
    write(tmp_path / "train.xyz", emt_frames(4, elements=("Cu",)))
    write(tmp_path / "valid.xyz", emt_frames(2, elements=("Cu", "Ag")))
    config = toy_config(tmp_path, data={"valid": str(tmp_path / "valid.xyz")})
    with pytest.raises(UserError, match="validation data hold Ag"):
        train(config, quiet=True)


def test_partial_labels_train_on_what_they_have(tmp_path):
    frames = emt_frames(12)
    for k, atoms in enumerate(frames):
        atoms.calc.results.pop(("stress", "forces", "energy")[k % 3])
    write(tmp_path / "train.xyz", frames)
    result = train(toy_config(tmp_path, loss={"virial": 1.0}), quiet=True)
    assert result.valid["n_frames"] == 2
