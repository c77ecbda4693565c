"""The demo runs from beginning to end, with a small base that need not be good."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpa1.model.file import save_model
from tests.training.test_finetune import small

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def demo(folder, *arguments):
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, folder / "examples" / "demo.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_a_base_that_is_not_there_is_one_sentence(tmp_path):
    done = demo(tmp_path, "--base", "nowhere.dpa1")
    assert done.returncode
    assert "nowhere.dpa1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    save_model(small(elements=("Si", "Ge"), cutoff=5.0), tmp_path / "base.dpa1")
    done = demo(tmp_path, "--base", "base.dpa1", "--level", "emt", "--frames", 20, "--steps", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "part 5 of 5" in done.stdout
    assert "20 frames and 4 steps for both arms: force RMSE" in done.stdout
    run = tmp_path / "demo" / "run-1"
    page = (run / "report.html").read_text(encoding="utf-8")
    for word in ("Pretrained or from scratch", "Molecular dynamics", "base, as it is", "Parity", "from scratch"):
        assert word in page
    for name in ("demo.png", "finetuned/report.html", "elements/elements.html", "md/trajectory.xyz"):
        assert (run / name).exists(), name
