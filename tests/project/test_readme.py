"""What the README shows works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from typer.testing import CliRunner

from dpa1.cli.main import app
from dpa1.config.model import ModelConfig
from dpa1.config.run import load_config
from dpa1.model.file import save_model
from dpa1.model.potential import Potential
from tests.training.toy import MODEL, emt_frames

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = sorted(set(re.findall(r"^dpa1 ((?:data )?[a-z]+)", README, re.M)))
COMMANDS = re.findall(r"^(dpa1 [^#\n]*)", README, re.M)
OPTION = re.compile(r"--[a-z][a-z-]*")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_configuration_is_valid_and_short(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "water.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).output
    assert len(text.splitlines()) <= 10


@pytest.mark.parametrize("verb", VERBS)
def test_verb_exists_and_has_the_options(verb):
    done = CliRunner().invoke(app, [*verb.split(), "--help"], terminal_width=200, color=False)
    assert done.exit_code == 0
    shown = {option for line in COMMANDS if f"{line} ".startswith(f"dpa1 {verb} ") for option in OPTION.findall(line)}
    assert shown <= set(OPTION.findall(done.stdout))


def test_options_are_shown():
    assert any(OPTION.findall(line) for line in COMMANDS)


def test_there_are_verbs():
    assert {"train", "evaluate", "md", "data check"} <= set(VERBS)


def test_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    torch.manual_seed(1)
    save_model(Potential(ModelConfig(**MODEL, elements=("Cu", "Al"), mean_neighbors=10.0)), "runs/mine/model.dpa1")
    frames = emt_frames(2)
    write("start.xyz", frames[0])
    write("test.xyz", frames)
    (text,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["metrics"]["force_rmse"] > 0
    assert capsys.readouterr().out


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([a-z]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
