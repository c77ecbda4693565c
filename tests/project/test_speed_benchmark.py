"""The speed benchmark runs end to end on a tiny case, without DeePMD-kit, and says what did not fit."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = "water-24"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks come with the repository only")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed

    case = speed.Group(TINY, 1, "float32")
    monkeypatch.setattr(speed, "groups", lambda quick: [case])
    for name in ("PROFILED", "STARTED", "TRAINED"):
        monkeypatch.setattr(speed, name, TINY)
    monkeypatch.setattr(speed, "SCALING", (TINY,))
    return speed


def run(speed, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> dict:
    output = folder / "raw" / "speed.json"
    command = ["speed.py", "--quick", "--no-deepmd", "--threads", "1", "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "0.05", "--output", str(output), *options])
    speed.main()
    return json.loads(output.read_text())


def test_both_tasks_leave_numbers_and_a_page(speed, monkeypatch, tmp_path) -> None:
    (group,) = run(speed, monkeypatch, tmp_path, "--only", f"{TINY}/*")["parts"].values()
    for task in ("inference", "training"):
        assert set(group[task]) == {speed.SAME, speed.DEFAULT}
        for record in group[task].values():
            assert min(record["seconds"]) > 0
            assert record["peak"] > 0
    assert "water, 24 atoms | 1 | float32 | dpa1 (default)" in (tmp_path / "speed.md").read_text()


@pytest.mark.slow
def test_every_part_leaves_numbers_and_a_part_asked_for_again_replaces_only_itself(
    speed, monkeypatch, tmp_path
) -> None:
    parts = run(speed, monkeypatch, tmp_path)["parts"]
    assert set(parts) == {f"{TINY}/1-layers/float32", "matmul", "start", "profile", "waiting", "scaling"}
    assert "failed" not in json.dumps(parts)
    monkeypatch.setattr(speed.Bench, "matmul", lambda self: {**parts["matmul"], "again": True})
    again = run(speed, monkeypatch, tmp_path, "--only", "matmul")["parts"]
    assert again.pop("matmul")["again"]
    assert again == {name: part for name, part in parts.items() if name != "matmul"}


def test_a_case_beyond_the_memory_is_written_down_as_such(speed, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(speed, "available_memory", lambda: 2e6)
    parts = run(speed, monkeypatch, tmp_path, "--only", f"{TINY}/*")["parts"]
    (group,) = parts.values()
    assert "does not fit" in group["inference"][speed.DEFAULT]["failed"]
    assert "not tried" in group["training"][speed.DEFAULT]["failed"]
    assert "does not fit" in (tmp_path / "speed.md").read_text()


def test_arithmetic_is_that_of_the_stated_case(speed) -> None:
    from speed_cases import MFLOP, arithmetic

    for task, expected in MFLOP.items():
        assert arithmetic(90, 2, task) == pytest.approx(1e6 * expected)
    # Counted by hand for the forward pass: embedding, projections and attention, contraction, fitting.
    linear = 2 * 90 * (17 * 25 + 25 * 50 + 50 * 100 + 400) + 2 * 100 * 64 + 2 * (1608 * 240 + 2 * 240**2 + 240)
    both = linear + 2 * (2 * 90 * 100 * 512 + 4 * 90**2 * 128)
    assert arithmetic(90, 0, "forward") / arithmetic(90, 2, "forward") == pytest.approx(linear / both)
    assert both == pytest.approx(29e6, rel=0.01)
