"""``dpa1 elements`` on the command line."""

import csv
import json
import sys

import pytest

from dpa1.model.file import save_model
from tests.cli.common import assert_refused, call
from tests.contracts.systems import example_options, random_potential

ELEMENTS = ("H", "Li", "B", "C", "N", "O", "F", "Na", "Al", "Si", "P", "S", "Cl", "Cu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elements")
    for name, seed in (("a.dpa1", 0), ("b.dpa1", 1)):
        potential = random_potential(example_options(elements=ELEMENTS, type_embedding=8), seed=seed)
        potential.info["trained_elements"] = list(ELEMENTS[:-1])
        save_model(potential, folder / name)
    return folder


def test_everything_is_written(models, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--output", out, "--compare", models / "b.dpa1", "--permutations", 199, "--seed", 5)
    shown = call(capsys, "elements", models / "a.dpa1", *options)
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    for words in ("not seen them in training: Cu.", "13 trained elements", "199 random deals", "(seed 5)", "stability"):
        assert words in text
    names = ["elements.csv", "elements.html", "elements.json", "elements.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    with (out / "elements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["element"] for row in rows] == list(ELEMENTS[:-1])
    assert rows[-1] == {**rows[-1], "atomic_number": "17", "group": "17", "period": "3"}
    numbers = json.loads((out / "elements.json").read_text())
    assert sum(numbers["explained_variance"]) == pytest.approx(1.0)
    assert {row["quantity"] for row in numbers["tests"]} == {"period", "group", "stability"}
    printed = call(capsys, "elements", models / "a.dpa1", *options[2:], "--json")
    assert json.loads(printed.out) == numbers
    assert_refused(call(capsys, "elements", models / "a.dpa1", "--output", out), "already holds files")


def test_without_matplotlib_the_rest_is_there(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call(capsys, "elements", models / "a.dpa1", "--output", tmp_path / "out", "--permutations", 99)
    assert result.code == 0
    assert "elements.png was not drawn" in result.err
    assert "pip install 'dpa1[plots]'" in result.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["elements.csv", "elements.html", "elements.json"]


def test_one_element(tmp_path, capsys):
    save_model(random_potential(example_options(elements=("Ge",))), tmp_path / "ge.dpa1")
    result = call(capsys, "elements", tmp_path / "ge.dpa1", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "One element has no arrangement" in " ".join(result.out.split())
    assert (tmp_path / "out" / "elements.csv").read_text() == "element,atomic_number,group,period\nGe,32,14,4\n"


def test_refusals(tmp_path, capsys):
    assert_refused(call(capsys, "elements", tmp_path / "none.dpa1"), "none.dpa1", "no such file")
