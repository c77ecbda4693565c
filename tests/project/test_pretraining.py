"""The recipe of the shipped model, from data sets to an installed model, on small sources."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
from pathlib import Path

import pytest
from ase.io import read, write

import dpa1
from dpa1.errors import UserError
from tests.cli.common import call
from tests.training.toy import MODEL, emt_frames

FOLDER = Path(__file__).parents[2] / "pretraining"
SHORT = [
    *(f"model.{key}={json.dumps(value)}" for key, value in MODEL.items()), "training.steps=6", "training.batch_atoms=16",
    "training.valid_every=3", "training.log_every=3", "training.checkpoint_every=3", "training.threads=1",
    "training.schedule.warmup_steps=0", "data.max_force=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        names = ("sources", "refit", "card", "pretrain")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def pretrained(modules, tmp_path_factory):
    """The folder of a finished pretraining on two levels of theory."""
    root = tmp_path_factory.mktemp("pretraining")
    Source = modules["sources"].Source
    about = {"licence": "MIT", "origin": "this test"}
    sources = (
        Source("alloys", ("alloys.xyz.gz",), 1.0, **about),
        Source("pairs", ("pairs.xyz.gz",), 0.5, **about, misfit=True),
        Source("others", ("others.xyz.gz",), 1.0, **about, level="other", held=("held.xyz.gz",)),
    )
    for seed, (name, elements) in enumerate(
        {"alloys": ("Cu", "Al"), "pairs": ("Cu", "Al"), "others": ("Cu", "Ni"), "held": ("Ni",)}.items()
    ):
        with gzip.open(root / f"{name}.xyz.gz", "wt") as file:
            write(file, emt_frames(30, seed, elements), format="extxyz")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sources", "refit", "card"):
            patch.setattr(modules[name], "SOURCES", sources)
        modules["pretrain"].pretrain(root, root / "work", SHORT)
        yield root / "work"


@pytest.mark.parametrize("name", ["model.dpa1", "best.dpa1"])
def test_installed(modules, pretrained, tmp_path, capsys, name):
    target = tmp_path / "new" / "pbe.dpa1"
    modules["card"].install(modules["pretrain"].last_run(pretrained, name), pretrained / "data", target, name)
    potential = dpa1.load(str(target))
    card = potential.info["card"]
    assert potential.levels == ("pbe", "other")
    step = "6 steps of about 16 atoms (rate {}, weight decay 0.02) on 1 thread of a CPU, 0.0 hours"
    assert card["training"].startswith("; from there ".join(step.format(rate) for rate in (0.004, 0.0015, 0.0015)))
    assert [source["name"] for source in card["sources"]] == ["alloys", "pairs", "others"]
    for source in card["sources"]:
        frames = list(dpa1.read(str(pretrained / "data" / "valid" / f"{source['name']}.xyz.gz")))
        assert source["held_back"] == len(frames) > 0
        measured = dpa1.evaluate(potential, frames, level=source["level"])
        assert source["force_rmse"] == pytest.approx(measured["force_rmse"], rel=1e-4)
    assert {frame.level for frame in potential.replay} == {"pbe", "other"}
    assert str(pretrained) not in json.dumps(potential.info), "names of files on the machine it was trained on"
    shown = call(capsys, "show", target)
    assert shown.code == 0
    assert all(word in shown.out for word in ("alloys", "pairs", "others", "MIT", "6 steps")), shown.out


def test_families_are_held_back_whole(pretrained):
    held = json.loads((pretrained / "data" / "held_back.json").read_text())
    for name in ("alloys", "pairs"):
        parts = [
            {frame.symbols.formula.reduce()[0].format("hill") for frame in read(pretrained / "data" / part / f"{name}.xyz.gz", ":")}
            for part in ("train", "valid")
        ]  # fmt: skip
        assert not parts[0] & parts[1]
        assert parts[1] == set(held[name])


def test_start_from_a_model(modules, pretrained, tmp_path):
    """``--from`` runs the last stage alone, and keeps the history of the model it starts from, and its weights."""
    target = tmp_path / "base.dpa1"
    modules["card"].install(pretrained / "run-3", pretrained / "data", target)
    work = tmp_path / "work"
    work.mkdir()
    (work / "data").symlink_to(pretrained / "data")
    modules["pretrain"].pretrain(tmp_path, work, [*SHORT, "training.learning_rate=1e-30"], str(target))
    assert not (work / "run-1").exists()
    assert not (work / "run-2").exists()
    modules["card"].install(work / "run-3", work / "data", tmp_path / "next.dpa1")
    base, after = dpa1.load(str(target)), dpa1.load(str(tmp_path / "next.dpa1"))
    history = after.info["card"]["training"]
    assert history.count("steps of about") == 4
    assert history.count("refitted") == 1
    name = "descriptor.embedding.layers.1.weight"
    assert after.state_dict()[name].equal(base.state_dict()[name])


def test_stages_follow_each_other(modules, pretrained, tmp_path):
    """A stage that has finished is left alone, the ones after it start from its weights, wherever the command was interrupted."""
    pretrain, work = modules["pretrain"], tmp_path / "work"
    shutil.copytree(pretrained, work)
    for name in ("run-2", "run-3"):
        shutil.rmtree(work / name)
        (work / f"{name}-before.json").unlink()
    kept = (work / "run-1" / "model.dpa1").read_bytes()
    assert pretrain.last_run(work, "model.dpa1") == work / "run-1"
    pretrain.pretrain(tmp_path, work, [*SHORT, "training.learning_rate=1e-30"])
    assert (work / "run-1" / "model.dpa1").read_bytes() == kept
    name = "descriptor.embedding.layers.1.weight"
    first, last = (dpa1.load(str(work / run / "model.dpa1")).state_dict()[name] for run in ("run-1", "run-3"))
    assert last.equal(first)
    assert not last.equal(dpa1.load(str(pretrained / "run-3" / "model.dpa1")).state_dict()[name])


def test_the_stages_are_valid_and_larger(modules):
    """Every stage is a configuration, with more atoms per step than the one before."""
    pretrain = modules["pretrain"]
    config = importlib.import_module("dpa1.config.run")
    values = config.read_values(FOLDER / "pbe.yaml") | {"data": {"train": ["x.xyz"]}}
    atoms = [
        config.config_from(values, FOLDER / "pbe.yaml", changes).training.batch_atoms for changes in pretrain.stages()
    ]
    assert atoms == sorted(set(atoms))


def test_what_cannot_be_started_or_installed(modules, pretrained, tmp_path):
    pretrain = modules["pretrain"]
    with pytest.raises(UserError, match=r"run-1 starts from random weights; .* name another folder"):
        pretrain.pretrain(tmp_path, pretrained, SHORT, "pbe")
    with pytest.raises(UserError, match=r"no stage of a pretraining there has left a model\.dpa1 yet"):
        pretrain.last_run(tmp_path, "model.dpa1")
