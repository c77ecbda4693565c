"""``dpa1 finetune`` and ``dpa1 distill`` as a person calls them."""

import json
from dataclasses import replace

import pytest
from ase.calculators.emt import EMT
from ase.io import read, write

from dpa1.distill import distill
from dpa1.errors import RunError, UserError
from dpa1.model.file import load_model, save_model
from dpa1.model.replay import attach_replay
from tests.cli.common import assert_refused, call
from tests.training.test_finetune import frames_of, small
from tests.training.toy import emt_frames


@pytest.fixture
def base(tmp_path):
    save_model(small(), tmp_path / "base.dpa1")
    return tmp_path / "base.dpa1"


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "new.xyz", emt_frames(12))
    return tmp_path / "new.xyz"


def test_finetune_needs_no_configuration(capsys, base, data, tmp_path):
    done = call(capsys, "finetune", base, data, "--output", tmp_path / "out", "--steps", 3, "--learning-rate", 1e-3)
    assert done.code == 0, done.err
    assert "method: full, because 12 training frames are few, but of so few compositions" in done.out
    assert "rank 2 of 2" in done.out
    assert load_model(tmp_path / "out" / "model.dpa1").levels == ("emt",)
    assert (tmp_path / "out" / "report.html").exists()


def test_finetune_takes_a_fraction_and_leaves_replay_out(capsys, base, data, tmp_path):
    (tmp_path / "settings.yaml").write_text(f"output: {tmp_path / 'there'}\nfinetune: {{replay: 0.2}}\n")
    done = call(capsys, "finetune", base, data, "--config", tmp_path / "settings.yaml", "--no-replay", "--valid", 0.25,
                "--steps", 2)  # fmt: skip
    assert done.code == 0, done.err
    assert "validation: 3 frames" in done.out
    assert (tmp_path / "there" / "model.dpa1").exists()
    done = call(capsys, "finetune", base, data, "--output", tmp_path / "all", "--valid", 0, "--steps", 2)
    assert done.code == 0, done.err
    assert "training: 12 frames" in done.out
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert_refused(call(capsys, "finetune", base, data, "--config", tmp_path / "list.yaml"), "holds no sections")


def test_finetune_refuses(capsys, base, data, tmp_path):
    out = ("--output", tmp_path / "out")
    assert_refused(call(capsys, "finetune", base, data, *out, "--level", "r2scan"), "r2scan", "emt")
    assert_refused(call(capsys, "finetune", base, data, *out, "--replay", 0.2), "carries no replay set")
    assert_refused(call(capsys, "finetune", base, data, *out, "--test", data), "12 of 12 test frames")
    assert_refused(call(capsys, "finetune", base, data, *out, "--replay", 0.2, "--no-replay"), "keep one")
    assert not (tmp_path / "out").exists()


def test_distill(capsys, base, data, tmp_path):
    done = call(capsys, "distill", base, data, "--output", tmp_path / "out", "--steps", 3, "--augment", 1)
    assert done.code == 0, done.err
    assert "student against teacher" in done.out
    assert "student against the given labels" in done.out
    assert "tabulated" in done.out
    student = load_model(tmp_path / "out" / "model.dpa1")
    assert student.config.attention_layers == 0
    assert student.cutoff == load_model(base).cutoff
    assert len(read(tmp_path / "out" / "train.xyz", ":")) == 22
    assert len(read(tmp_path / "out" / "test.xyz", ":")) == 1


def test_distill_from_a_function(capsys, data, tmp_path):
    arguments = ("--output", tmp_path / "out", "--steps", 2, "--cutoff", 4)
    done = call(capsys, "distill", "python:ase.calculators.emt.EMT", data, *arguments)
    assert done.code == 0, done.err
    assert "teacher" in done.out
    assert_refused(call(capsys, "distill", "python:nowhere.make", data, "--output", tmp_path / "b"), "nowhere")


def test_distill_refuses(tmp_path):
    # The teacher first: without one the structures' elements cannot be checked.
    with pytest.raises(UserError, match=r"none\.dpa1: no such file"):
        distill("none.dpa1", emt_frames(3), output=tmp_path / "out")
    with pytest.raises(UserError, match="3 structures are too few"):
        distill(EMT(), emt_frames(3), output=tmp_path / "out")
    frames = emt_frames(10)
    frames[4].symbols[0] = "U"
    with pytest.raises(RunError, match="frame 4: the teacher failed"):
        distill(EMT(), frames, output=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_show_fits_a_terminal(capsys, tmp_path):
    save_model(small(("pbe", "r2scan", "a-level-with-a-long-name")), tmp_path / "three.dpa1")
    done = call(capsys, "show", tmp_path / "three.dpa1")
    assert "1.000000" in done.out
    assert "… and the levels r2scan, a-level-with-a-long-name: see --json" in done.out


def test_show_counts_the_replay_set(capsys, base, tmp_path):
    assert "replay set       none" in call(capsys, "show", base).out
    potential = small(("a", "b"))
    frames = frames_of(8, seed=7)
    attach_replay(potential, [replace(frame, level="b" if k < 3 else "a") for k, frame in enumerate(frames)])
    save_model(potential, tmp_path / "with.dpa1")
    done = call(capsys, "show", tmp_path / "with.dpa1")
    atoms = sum(map(len, frames))
    assert f"replay set       frames 8, atoms {atoms}, levels a 5, b 3" in done.out
    card = json.loads(call(capsys, "show", tmp_path / "with.dpa1", "--json").out)
    assert card["replay_set"] == {"frames": 8, "atoms": atoms, "levels": {"a": 5, "b": 3}}
