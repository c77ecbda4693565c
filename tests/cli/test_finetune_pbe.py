"""``dpa1 finetune pbe`` on what people have: molecules, one frame, missing labels, new elements, damaged files, a lost machine."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa1.interop.shipped import FOLDER
from dpa1.model.file import load_model
from tests.cli.common import assert_refused, call, spawn
from tests.training.toy import emt_frames

PBE = ("--level", "pbe")


def dimers(symbols="BkO"):
    """Three molecules without a cell, of an element that the model was not trained on."""
    frames = []
    for k in range(3):
        frames.append(Atoms(symbols, [[0, 0, 0], [0, 0, 2.0 + 0.1 * k]]))
        labels = {"energy": -5.0 + 0.1 * k, "forces": [[0, 0, 0.1], [0, 0, -0.1]]}
        frames[-1].calc = SinglePointCalculator(frames[-1], **labels)
    return frames


def only(frames, *labels):
    """The same frames with these labels alone."""
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, **{label: atoms.calc.results[label] for label in labels})
    return frames


@pytest.fixture
def tune(capsys, tmp_path):
    def run(frames, *options, base="pbe", steps=2):
        write(tmp_path / "new.xyz", frames)
        given = (tmp_path / "new.xyz", "--output", tmp_path / "out", "--steps", steps)
        return call(capsys, "finetune", base, *given, *options)

    return run


def check_refused(done, folder, *words):
    assert_refused(done, *words)
    assert not (folder / "out").exists()


def test_one_molecule_of_a_new_element_with_replay(tune, tmp_path):
    """Its energies alone: the replayed frames' forces are learned all the same, so that they are not forgotten."""
    done = tune(only(dimers()[:1], "energy"), *PBE, "--replay", 0.5, steps=1)
    assert done.code == 0, done.err
    for line in ("new.xyz: level finetuned, 1 frame (energy 1)", "new element Bk starts from Cm", "fewer frames (1) than elements (2)",
                 "because 1 training frame is few", "loss: energy, forces, virial, which the new frames or those replayed have"):  # fmt: skip
        assert line in done.out, line
    tuned = load_model(tmp_path / "out" / "model.dpa1")
    assert tuned.levels == (*load_model(FOLDER / "pbe.dpa1").levels, "finetuned")
    assert "Bk" in tuned.trained_elements
    assert done.err == ""


def test_an_isolated_atom_is_enough(tune, tmp_path):
    atom = Atoms("Mo")
    atom.calc = SinglePointCalculator(atom, energy=-4.6, forces=[[0, 0, 0]])
    done = tune([atom], *PBE)
    assert done.code == 0, done.err
    tuned = load_model(tmp_path / "out" / "model.dpa1")
    assert tuned.calculator().get_potential_energy(Atoms("Mo")) == pytest.approx(-4.6, abs=1e-5)


def test_forces_alone(tune):
    done = tune(only(emt_frames(2), "forces"), *PBE)
    assert done.code == 0, done.err
    assert "loss: forces, which the frames have" in done.out
    assert "no training frame has an energy, so it stays as it is" in done.out


def test_copies_are_not_held_out(tune):
    """Of 22 frames of 11 structures a tenth of the structures is held out, with both copies."""
    frames = [atoms for atoms in only(emt_frames(11), "energy") for _ in range(2)]
    done = tune(frames, *PBE, "--method", "heads")
    assert done.code == 0, done.err
    assert "validation: 2 frames" in done.out
    assert "11 frames of the training data are copies of others" in done.out


def test_frames_without_labels(tune, tmp_path):
    plain = [bulk("Cu")]
    plain[0].info["my_energy"] = -3.0
    check_refused(
        tune(plain, *PBE), tmp_path, "new.xyz: no training frame has energy or forces", "my_energy", "--label"
    )


def test_levels(tune, tmp_path):
    levels = ", ".join(load_model(FOLDER / "pbe.dpa1").levels)
    check_refused(tune(dimers()), tmp_path, "pbe: holds several levels of theory", levels, "--level pbe")
    check_refused(tune(dimers(), "--level", "pbee"), tmp_path, "--level", "'pbee'", levels, "did you mean 'pbe'")
    check_refused(tune(dimers(), *PBE, "--replay", 0.2, "--new-level", "pbe"), tmp_path, "'pbe'", "another --new-level")


def test_the_base_decides_architecture_and_elements(tune, tmp_path):
    (tmp_path / "cutoff.yaml").write_text("model: {cutoff: 6.5}")
    done = tune(dimers(), *PBE, "--config", tmp_path / "cutoff.yaml")
    check_refused(done, tmp_path, "'model.cutoff' is 6.5, but the base pbe has", "drop the key")
    (tmp_path / "elements.yaml").write_text("model: {elements: [Cu, O]}")
    done = tune(dimers(), *PBE, "--config", tmp_path / "elements.yaml")
    check_refused(done, tmp_path, "'model.elements' lacks H, He", "more of the base pbe")


def test_a_test_set_with_a_training_frame_repeated(tune, tmp_path):
    frames = emt_frames(2)
    large = frames[1].repeat((1, 1, 2))
    large.calc = SinglePointCalculator(large, energy=0.0)
    write(tmp_path / "test.xyz", large)
    done = tune(frames, *PBE, "--test", tmp_path / "test.xyz")
    check_refused(done, tmp_path, "1 of 1 test frames", "test.xyz, frame 0 =", "new.xyz, frame 1, repeated")


def test_damaged_bases(tune, tmp_path):
    whole = (FOLDER / "pbe.dpa1").read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) * 3 // 4] ^= 0x55
    contents = {
        "half.dpa1": (whole[: len(whole) // 2], "damaged; copy the file again"),
        "spoiled.dpa1": (bytes(spoiled), "damaged; copy the file again"),
        "empty.dpa1": (b"", "is empty or truncated"),
        "text.dpa1": (b"no model\n" * 20, "not a dpa1 file"),
        "text.pt": (b"no model\n" * 20, "neither a DeePMD-kit checkpoint nor a frozen model"),
        "text.dp": (b"no model\n" * 20, "not a model"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        check_refused(tune(dimers(), *PBE, base=tmp_path / name), tmp_path, name, words)
    check_refused(tune(dimers(), *PBE, base="pbex"), tmp_path, "did you mean 'pbe'")


@pytest.mark.parametrize(
    "verb",
    [("md", "--temperature", 300, "--steps", 1), ("relax",), ("evaluate",), ("distill",)],
    ids=["md", "relax", "evaluate", "distill"],
)
def test_every_verb_names_the_option_and_the_levels(capsys, tmp_path, verb):
    write(tmp_path / "a.xyz", emt_frames(1))
    levels = ", ".join(load_model(FOLDER / "pbe.dpa1").levels)
    given = (verb[0], "pbe", tmp_path / "a.xyz", *verb[1:], "--output", tmp_path / "out.xyz")
    assert_refused(call(capsys, *given), "--level", levels)
    assert_refused(call(capsys, *given, "--level", "nope"), "--level", "'nope'", levels)
    assert not (tmp_path / "out.xyz").exists()


@pytest.mark.slow
def test_a_killed_fine_tune_resumes_to_the_same_model(tmp_path):
    """SIGKILL between two checkpoints, of a run with everything: a new element, replay, low-rank updates, validation."""
    write(tmp_path / "new.xyz", [*dimers(), *emt_frames(20)])
    (tmp_path / "more.yaml").write_text(
        "training: {checkpoint_every: 10, log_every: 5, valid_every: 10, batch_atoms: 32, threads: 1}"
    )
    options = ("pbe", "new.xyz", *PBE, "--replay", "0.3", "--method", "lora", "--steps", "30", "--config", "more.yaml")
    whole = spawn("finetune", *options, "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa1", "finetune", *options, "--output", "killed"],
        cwd=tmp_path,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not list((tmp_path / "killed" / "checkpoints").glob("*.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.dpa1").exists()
    again = spawn("train", "killed/config.yaml", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "continuing from" in again.out
    a, b = (load_model(tmp_path / name / "model.dpa1") for name in ("whole", "killed"))
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())
    assert a.info["finetuned"] == b.info["finetuned"]
    assert a.levels == b.levels
