"""Models that come with the package are opened by name; files of the same name win, folders do not."""

import shutil

import pytest

import dpa1
from dpa1.cli.main import app
from dpa1.errors import UserError
from dpa1.interop import shipped
from dpa1.model.file import save_model
from tests.contracts.systems import example_options, random_potential


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder, and a package that ships ``pbe`` and ``r2scan``."""
    models = tmp_path / "models"
    models.mkdir()
    for name in ("pbe", "r2scan"):
        potential = random_potential(example_options())
        potential.info["card"] = {
            "description": f"the model {name}", "good_for": ["starting"], "not_good_for": ["ending"],
            "sources": [{"name": "A", "level": "x", "licence": "MIT", "frames": 3, "held_back": 1, "force_mae": 0.1}],
            "training": "2 steps",
        }  # fmt: skip
        save_model(potential, models / f"{name}.dpa1")
    monkeypatch.setattr(shipped, "FOLDER", models)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_by_name(place):
    assert dpa1.load("pbe").info["card"]["description"] == "the model pbe"


def test_a_file_wins_and_a_folder_does_not(place):
    (place / "here/pbe").mkdir()
    assert dpa1.load("pbe").info["card"]["description"] == "the model pbe"
    (place / "here/pbe").rmdir()
    shutil.copy(place / "models/r2scan.dpa1", "pbe")
    assert dpa1.load("pbe").info["card"]["description"] == "the model r2scan"


def test_an_unknown_name_lists_those_there_are(place, monkeypatch):
    with pytest.raises(
        UserError, match=r"pbee: no such file, and the models that come with dpa1 are pbe, r2scan.*'pbe'"
    ):
        dpa1.load("pbee")
    with pytest.raises(UserError, match=r"pbee.dpa1: no such file"):
        dpa1.load("pbee.dpa1")
    (place / "here/runs").mkdir()
    with pytest.raises(UserError, match="runs: is a folder"):
        dpa1.load("runs")
    monkeypatch.setattr(shipped, "FOLDER", place / "here")
    with pytest.raises(UserError, match="no model comes with this dpa1"):
        dpa1.load("pbe")


def test_its_card_is_shown(place):
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ["show", "pbe"])
    assert shown.exit_code == 0
    for text in ("the model pbe", "- starting", "- ending", "2 steps", "MIT", "100"):
        assert text in shown.output
