"""How many atoms fit, and what a simulation would do, without doing it."""

import json
import re

import pytest
from ase.build import bulk
from ase.io import write

from dpa1.model.file import save_model
from tests.cli.common import call
from tests.contracts.systems import example_options, random_potential


@pytest.fixture
def model(tmp_path):
    potential = random_potential(example_options())
    save_model(potential, tmp_path / "model.dpa1")
    return tmp_path / "model.dpa1"


@pytest.fixture
def copper(tmp_path):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    write(tmp_path / "cu.xyz", atoms)
    return tmp_path / "cu.xyz"


def test_show_says_what_fits(capsys, model):
    done = call(capsys, "show", model)
    assert done.code == 0
    text = " ".join(done.out.split())
    found = re.search(r"cpu about ([\d,]+) atoms in [\d.]+ [GM]B of free memory \(.*?20 neighbors within 4 Å", text)
    assert found
    assert int(found[1].replace(",", "")) > 1000
    card = json.loads(call(capsys, "show", model, "--json").out)
    assert "cpu" in card["fits"]


def test_dry_run_writes_nothing(capsys, model, copper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = call(capsys, "md", model, copper, "--temperature", 300, "--steps", 1000, "--device", "cpu", "--dry-run")
    assert done.code == 0, done.err
    assert sorted(tmp_path.rglob("*")) == before
    for said in (
        "NVT of Cu32", "32 atoms with 18.0 neighbors each, 1000 steps from step 0", "time per step", "ns/day",
        "would write into cu-md: settings.json, thermo.csv", "101 rows and frames", "fits on cpu beside this structure: about", "nothing was written",
    ):  # fmt: skip
        assert said in done.out


def test_dry_run_of_a_continued_run(capsys, model, copper, tmp_path):
    folder = tmp_path / "run"
    options = ("--output", folder, "--device", "cpu", "--steps")
    assert call(capsys, "md", model, copper, "--temperature", 300, *options, 20).code == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = call(capsys, "md", model, copper, *options, 50, "--resume", "--dry-run")
    assert done.code == 0, done.err
    assert "30 steps from step 20" in done.out
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_dry_run_refuses_what_the_run_would(capsys, model, copper):
    done = call(capsys, "md", model, copper, "--steps", 10, "--dry-run")
    assert done.code == 2
    assert "--temperature is missing" in done.err
