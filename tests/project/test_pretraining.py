"""The recipe of the shipped model, from data sets to an installed model, on small sources."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import pytest
from ase.io import read, write

import dpa1
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
    modules["card"].install(pretrained / "run", pretrained / "data", target, name)
    potential = dpa1.load(str(target))
    card = potential.info["card"]
    assert potential.levels == ("pbe", "other")
    assert card["training"].startswith("6 steps of about 16 atoms (rate 0.004, weight decay 0.02) on 1 thread of a CPU")
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
    """``--from`` keeps the history of the model it starts from, and its weights."""
    target = tmp_path / "base.dpa1"
    modules["card"].install(pretrained / "run", pretrained / "data", target)
    work = tmp_path / "work"
    work.mkdir()
    (work / "data").symlink_to(pretrained / "data")
    modules["pretrain"].pretrain(tmp_path, work, [*SHORT, "training.learning_rate=1e-30"], str(target))
    modules["card"].install(work / "run", work / "data", tmp_path / "next.dpa1")
    base, after = dpa1.load(str(target)), dpa1.load(str(tmp_path / "next.dpa1"))
    history = after.info["card"]["training"]
    assert history.count("steps of about") == 2
    assert history.count("refitted") == 1
    name = "descriptor.embedding.layers.1.weight"
    assert after.state_dict()[name].equal(base.state_dict()[name])
