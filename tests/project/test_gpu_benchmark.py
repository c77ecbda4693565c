"""The GPU benchmark runs end to end (here on the CPU), and says what it cannot measure."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the benchmarks come with the repository only"
)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def start(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    gpu.main()


def test_page_says_what_is_not_measured(gpu, monkeypatch, tmp_path):
    start(gpu, monkeypatch, "--page", "--output", tmp_path / "raw" / "gpu.json")
    page = (tmp_path / "gpu.md").read_text()
    assert page.count(gpu.UNKNOWN) > 20
    assert not (tmp_path / "raw" / "gpu.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        start(gpu, monkeypatch, "--output", tmp_path / "gpu.json")
    assert end.value.code == 2
    assert "no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny(gpu, monkeypatch):
    changes = {"STEP_EDGES": (2,), "TRAINING": ("water-24",), "REPEATS": 1, "STEPS": 1, "WARM": 1, "COUNTED": 23}
    for name, value in {**changes, "VARIANTS": {"2 layers": (1, False), "no attention": (0, True)}}.items():
        monkeypatch.setattr(gpu, name, value)
    return gpu


def test_measures_every_part(tiny, monkeypatch, tmp_path):
    output = tmp_path / "raw" / "gpu.json"
    start(tiny, monkeypatch, "--device", "cpu", "--edges", 2, "--output", output)
    results = json.loads(output.read_text())
    case = results["inference"]["2 layers/24"]
    assert 0.0 < case["neighbors_s"] < 60.0
    assert case["seconds"] > 0.0
    step = results["steps"]["2 layers/24/fixed"]
    assert step["seconds"] > 0.0
    assert step["recordings"] == 1
    assert step["refusal"] == ""
    assert 0.0 <= step["error"] < 1e-4
    assert results["steps"]["no attention/24/ordinary"]["seconds"] > 0.0
    assert results["precision"]["2 layers"]["error"] < 1e-3
    assert results["training"]["dpa1/2/24"]["seconds"] > 0.0
    assert all(path["ok"] for path in results["paths"])
    page = (tmp_path / "gpu.md").read_text()
    assert "| 24 | 2 layers |" in page
    assert "step of fixed shape" in page
    # One part again: the others stay.
    del results["training"]["dpa1/0/24"]
    output.write_text(json.dumps(results))
    start(tiny, monkeypatch, "--device", "cpu", "--edges", 2, "--output", output, "--parts", "training")
    again = json.loads(output.read_text())
    assert again["steps"] == results["steps"]
    assert "dpa1/0/24" in again["training"]


def test_dry_run_prints_the_page_and_leaves_nothing(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    start(tiny, monkeypatch, "--dry-run", "--parts", "steps")
    assert "| 24 | 2 layers |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_wheels_that_were_brought_along(gpu, tmp_path):
    """An environment made without network: the wheel is in it, and so is what this one has."""
    wheel = tmp_path / "brought-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("brought.py", "import numpy\n")
        archive.writestr("brought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        archive.writestr(
            "brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("brought-1.0.dist-info/RECORD", "")
    python = gpu.bring([wheel], tmp_path)
    subprocess.run([str(python), "-c", "import brought"], check=True)
