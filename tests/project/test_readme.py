"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpa1.cli.main import app
from dpa1.config.run import load_config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = sorted(set(re.findall(r"^dpa1 ((?:data )?[a-z]+)", README, re.M)))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_configuration_is_valid_and_short(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "water.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).output
    assert len(text.splitlines()) <= 10


@pytest.mark.parametrize("verb", VERBS)
def test_verb_exists(verb):
    assert CliRunner().invoke(app, [*verb.split(), "--help"]).exit_code == 0


def test_there_are_verbs():
    assert {"train", "evaluate", "md", "data check"} <= set(VERBS)


def test_python_blocks_are_python():
    for text in blocks("python"):
        compile(text, "README.md", "exec")


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([a-z]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
