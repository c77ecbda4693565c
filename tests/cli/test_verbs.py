"""The verbs do what their help says, on the screen and in the files they leave."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.io import read

from dpa1.cli import evaluate as evaluate_verb
from dpa1.cli.main import main
from dpa1.cli.terminal import Progress, duration, to_json
from tests.cli.common import call


def test_evaluate(model, data, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    shown = call(capsys, "evaluate", model, data / "a.xyz", data / "b.xyz", "--output", out)
    assert shown.code == 0, shown.err
    assert "7 frames, 28 atoms" in shown.out
    for word in ("meV/atom", "meV/Å", "GPa", "forces per element", "RMSE per source", "worst frames", "parity.png"):
        assert word in shown.out
    assert sorted(path.name for path in out.iterdir()) == ["frames.csv", "metrics.json", "parity.png", "report.html"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["energy_mae"] == pytest.approx(0.1 / 4, rel=1e-4)
    assert 0.15 < metrics["force_rmse"] < 0.25
    assert metrics["stress_mae"] == pytest.approx(0.01, rel=0.5)
    assert set(metrics["per_element"]) == {"Cu", "O"}
    assert metrics["per_source"][str(data / "b.xyz")]["virial_rmse"] is None
    with (out / "frames.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    printed = call(capsys, "evaluate", model, data / "a.xyz", data / "b.xyz", "--json", "--batch-atoms", 4)
    other = json.loads(printed.out)
    assert other["force_rmse"] == pytest.approx(metrics["force_rmse"], rel=1e-10)


def test_evaluate_leaves_nothing_when_it_fails(model, data, tmp_path, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpa1.analysis.evaluate.evaluate", fail)
    result = call(capsys, "evaluate", model, data / "a.xyz", "--output", tmp_path / "out")
    assert result.code == 1
    assert "MemoryError" in result.err
    trace = next(tmp_path.glob("dpa1-error-*.log"))
    assert f"Full trace: {trace}" in result.err
    assert "Traceback" in trace.read_text()
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == [trace.name]
    assert evaluate_verb.SHOWN["energy"][1] == "meV/atom"


def test_md_and_resume(model, structure, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ("md", model, structure, "--every", 2, "--restart-every", 2)
    whole = call(capsys, *run, "--temperature", 100, "--steps", 8, "--output", "whole", "--seed", 3)
    assert whole.code == 0, whole.err
    assert "NVT of Cu4" in whole.out
    assert "ns/day" in whole.err
    names = ["final.xyz", "restart.dpa1", "settings.json", "thermo.csv", "thermo.png", "trajectory.xyz"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == names
    call(capsys, *run, "--temperature", 100, "--steps", 4, "--output", "parts", "--seed", 3)
    refused = call(capsys, *run, "--temperature", 200, "--steps", 8, "--output", "parts", "--resume")
    assert refused.code == 2
    assert "--temperature: the run in parts has 100.0, not 200.0" in refused.err
    resumed = call(capsys, *run, "--steps", 8, "--output", "parts", "--resume")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "parts" / "thermo.csv").read_text() == (tmp_path / "whole" / "thermo.csv").read_text()
    assert np.array_equal(read("parts/final.xyz").positions, read("whole/final.xyz").positions)


def test_without_matplotlib_the_numbers_are_there(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call(capsys, "evaluate", model, data / "a.xyz", "--output", tmp_path / "out")
    assert result.code == 0
    assert "parity.png was not drawn: drawing needs the package 'matplotlib': install it with" in result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frames.csv", "metrics.json", "report.html"]


def test_md_that_flies_apart(model, structure, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--temperature", 90000, "--steps", 50, "--timestep", 10, "--ensemble", "nve", "--output", "hot")
    result = call(capsys, "md", model, structure, *arguments)
    assert result.code == 1
    assert "stopped after step" in result.err
    assert "hot/dpa1-error" in result.err
    assert np.isfinite(read("hot/trajectory.xyz").positions).all()
    assert (tmp_path / "hot" / "thermo.png").exists()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM] * 3])  # schedulers send bursts
def test_md_interrupted_by_a_signal_can_be_resumed(model, structure, tmp_path, signals):
    command = [sys.executable, "-m", "dpa1", "md", str(model), str(structure), "--output", "run", "--ensemble", "nve"]
    start = [*command, "--temperature", "50", "--steps", "1000000", "--every", "1"]
    process = subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ)
    log = tmp_path / "run" / "thermo.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 4):
        time.sleep(0.1)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "continue with --resume" in err
    steps = [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]]
    again = [*command, "--resume", "--steps", str(steps[-1] + 3), "--every", "1"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]]
    assert steps == list(range(len(steps)))


def test_relax(model, structure, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "relax", model, structure, "--fmax", 1e-4, "--output", "relaxed.xyz")
    assert done.code == 0, done.err
    assert "converged in" in done.out
    assert np.linalg.norm(read("relaxed.xyz").get_forces(), axis=1).max() < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["relaxed-path.xyz", "relaxed.csv", "relaxed.xyz"]
    path = read("relaxed-path.xyz", ":")
    largest = [np.linalg.norm(atoms.get_forces(), axis=1).max() for atoms in path]
    assert largest[-1] < 1e-4 < largest[0]
    cell = call(capsys, "relax", model, structure, "--cell", "--fmax", 1e-9, "--steps", 2, "--output", "cell.cif")
    assert cell.code == 1
    assert "not converged after 2 steps" in cell.err
    assert "cell.cif" in cell.err
    assert read("cell.cif").get_volume() != pytest.approx(read(structure).get_volume(), rel=1e-8)


def test_show(model, capsys):
    card = call(capsys, "show", model)
    assert card.code == 0, card.err
    for word in ("H O Cu", "smooth, mean neighbors 20", "3 Å", "CC0-1.0", "random weights", "version 1", "energy bias"):
        assert word in card.out
    found = json.loads(call(capsys, "show", model, "--json").out)
    assert found["parameters"] > 100
    assert set(found["energies"]["default"]) == {"H", "O", "Cu"}
    assert found["config"]["cutoff"] == 3.0


def test_doctor(capsys):
    found = json.loads(call(capsys, "doctor", "--json").out)
    assert found["devices"]["cpu"]["ok"]
    assert found["required"]["torch"]
    assert "device:    cpu" in call(capsys, "doctor").out


def test_starts_quickly_and_without_torch():
    code = (
        "import sys, dpa1.cli.main; "
        "print([name for name in ('torch', 'ase', 'matplotlib', 'h5py', 'lmdb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_keyboard_interrupt_is_one_sentence(monkeypatch, capsys):
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpa1.interop.load.load_potential", stop)
    result = call(capsys, "show", "anything.dpa1")
    assert (result.code, result.err) == (1, "Stopped by the keyboard.\n")
    assert callable(main)


def test_progress_in_a_log(capsys):
    progress = Progress(30, "steps", interval=0.0)
    progress.update(10, "300 K")
    progress.update(30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("10/30 steps  ")
    assert "left" in lines[0]
    assert lines[1].startswith("30/30 steps")
    assert [duration(s) for s in (7, 95, 3900)] == ["7 s", "1 min 35 s", "1 h 05 min"]
    assert to_json({"a": float("nan"), "b": [1.5]}) == '{\n  "a": null,\n  "b": [\n    1.5\n  ]\n}'
