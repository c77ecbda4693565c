"""Every training run ends with its report, from the command line and from Python; a failing report fails no run."""

import re

import pytest
import yaml
from ase.io import write

import dpa1
from tests.cli.common import call
from tests.training.toy import emt_frames, toy_config


@pytest.fixture
def config(tmp_path):
    return toy_config(tmp_path, training={"steps": 4})


def titles(folder):
    return re.findall("<h2>(.*?)</h2>", (folder / "report.html").read_text(encoding="utf-8"))


def test_from_python(config, tmp_path):
    result = dpa1.train(config, quiet=True)
    assert titles(result.folder) == [
        "Learning curves", "Errors on validation data", "Worst frames of the validation data", "Data",
        "Configuration and versions",
    ]  # fmt: skip
    assert f"report: {result.folder / 'report.html'}" in (result.folder / "train.log").read_text()
    text = (result.folder / "report.html").read_text(encoding="utf-8")
    assert f">{1e3 * result.valid['force_rmse']:.4g}<" in text
    assert "Al Cu" in text


def test_from_the_command_line_and_evaluated(config, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    done = call(capsys, "train", path, "--output", tmp_path / "other", "data.valid=null")
    assert done.code == 0, done.err
    assert "report:" in done.out
    assert "Errors on training data" in titles(tmp_path / "other")
    assert "training frames." in (tmp_path / "other" / "report.html").read_text()


def test_test_data_without_labels(config, tmp_path):
    bare = emt_frames(3, seed=9)
    for atoms in bare:
        atoms.calc = None
    write(tmp_path / "bare.xyz", bare, format="extxyz")
    result = dpa1.train({**config, "data": {**config["data"], "test": str(tmp_path / "bare.xyz")}}, quiet=True)
    text = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "The test data have no labels" in text
    assert "Errors on validation data" in titles(result.folder)
    assert "test frames: they have no labels" in (result.folder / "train.log").read_text()


def test_errors_of_several_sources(config, tmp_path):
    for k, name in enumerate("ab"):
        write(tmp_path / f"{name}.xyz", emt_frames(10, seed=k + 1))
    sources = [
        {"path": str(tmp_path / f"{name}.xyz"), "name": f"set {name}", "level": f"level {name}"} for name in "ab"
    ]
    result = dpa1.train({**config, "data": {"train": sources, "valid": 0.3}}, quiet=True)
    text = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Per source and level of theory" in text
    for row in result.valid["sources"]:
        assert f">{row['source']}, {row['level']}<" in text
        assert f">{1e3 * row['force_rmse']:.4g}<" in text
    assert "level a, level b" in text


def test_a_failing_report_fails_no_run(config, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr("dpa1.analysis.report.survey", fail)
    result = dpa1.train(config)
    assert result.model.exists()
    assert not (result.folder / "report.html").exists()
    out = capsys.readouterr().out
    assert "report.html was not written (MemoryError: out of memory)" in out
    assert "Traceback" not in out
