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


def test_all_pairs_of_several_models(models, tmp_path, capsys):
    """Stability is that of every pair, and models that began alike are pointed out."""
    potential = random_potential(example_options(elements=ELEMENTS, type_embedding=8), seed=2)
    for name, info in (("[b]c.dpa1", {"seed": 3}), ("d.dpa1", {"seed": 3})):
        potential.info = {"trained_elements": list(ELEMENTS), **info}
        save_model(potential, tmp_path / name)
    names = [models / "a.dpa1", tmp_path / "[b]c.dpa1", tmp_path / "d.dpa1"]
    options = ["--compare", names[1], "--compare", names[2], "--permutations", 99]
    found = json.loads(call(capsys, "elements", names[0], *options, "--json").out)
    pairs = [(row["model"], row["with"]) for row in found["tests"] if row["method"] == "alignment"]
    assert pairs == [(str(a), str(b)) for a, b in ((names[0], names[1]), (names[0], names[2]), (names[1], names[2]))]
    alike = [row["value"] for row in found["tests"] if (row["model"], row.get("with")) == pairs[-1]]
    assert alike == pytest.approx([1.0, 1.0])
    shown = " ".join(call(capsys, "elements", names[0], *options).out.split())
    unwrapped = shown.replace(" ", "")  # long paths are broken over lines
    assert f"1is{names[0]};2is{names[1]};3is{names[2]}." in unwrapped
    assert all(f"│ {a} and {b} │" in shown for a, b in ((1, 2), (1, 3), (2, 3)))
    assert shown.count("trained with the same seed (3)") == 1
    again = call(capsys, "elements", names[0], "--compare", names[0], "--permutations", 99)
    assert "come from one model" in " ".join(again.out.split())


def test_deepmd_files_do_not_say_what_was_trained(capsys):
    model = "tests/golden/models/six_elements_strip/model.dp"
    result = call(capsys, "elements", model, "--permutations", 99)
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "All elements of the model, since the file does not say which of them were trained: H C N O Al Cu." in text
    assert " models " not in text.split("numbers against chance")[1]


def test_refusals(tmp_path, capsys):
    assert_refused(call(capsys, "elements", tmp_path / "none.dpa1"), "none.dpa1", "no such file")
