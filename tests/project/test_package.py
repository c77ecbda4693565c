"""The package as a whole: fast to import, layered, of one version, without shortcuts that a user would pay for."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpa1

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = {"torch", "ase", "matplotlib", "h5py", "lmdb", "scipy", "pandas", "tensorboard", "wandb", "mlflow", "lightning"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_fast_and_light():
    code = "import sys, time; t = time.perf_counter(); import dpa1; print(time.perf_counter() - t, *sys.modules)"
    runs = [python(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3
    assert not HEAVY & set(runs[0][1:])


def test_help_needs_no_torch():
    loaded = python(
        "import sys\nfrom typer.testing import CliRunner\nfrom dpa1.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\nprint(*sys.modules)"
    ).split()
    assert not {"torch", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("name", dpa1.__all__)
def test_every_public_name_exists(name):
    assert getattr(dpa1, name) is not None


def test_a_room_imports_only_rooms_below_it():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_version_stands_in_one_place_only():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    assert declared[1] == dpa1.__version__ == importlib.metadata.version("dpa1")


def test_tested_set_covers_the_requirements():
    pinned = {
        line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().lower().splitlines() if "==" in line
    }
    required = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        for requirement in importlib.metadata.requires("dpa1") or []
        if not re.search(r"extra == .(wandb|mlflow|all)", requirement)
    }
    assert required - {"dpa1"} <= {name.replace("_", "-") for name in pinned}


def test_no_path_of_a_machine():
    folders = ("src", "tests", "docs", "benchmarks", "pretraining", "examples")
    texts = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py", ".yaml")
    ]
    texts += ROOT.glob("*.md")
    assert len(texts) > 300
    for path in texts:
        assert not re.search(r"\.\./shared|(?<![\w.])/(?:work|home)/", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_source_file(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "a file this long has two things in it"
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert not calls & {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "urlopen", "requests.get"}
    assert "weights_only=False" not in text.replace(" ", "")
    assert not re.search(r"allow_pickle\s*=\s*True", text)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
