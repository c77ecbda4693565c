"""The GPU benchmark runs end to end (here on the CPU), and says what it cannot measure."""

import json
import sys
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


def test_measures_every_part(gpu, monkeypatch, tmp_path):
    for name, value in {"STEP_EDGES": (2,), "TRAINING": "water-24", "REPEATS": 1, "STEPS": 1}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "VARIANTS", {"2 layers": (1, False)})
    output = tmp_path / "raw" / "gpu.json"
    start(gpu, monkeypatch, "--device", "cpu", "--edges", 2, "--output", output)
    results = json.loads(output.read_text())
    case = results["inference"]["2 layers/24"]
    assert 0.0 < case["neighbors_s"] < 60.0
    assert case["seconds"] > 0.0
    assert results["steps"]["2 layers/24"]["seconds"] > 0.0
    assert results["training"]["dpa1/2"]["seconds"] > 0.0
    assert "| 24 | 2 layers |" in (tmp_path / "gpu.md").read_text()
