"""Where numbers and messages go."""

import importlib.util
import math
import sys
import types

import pytest

from dpa1.errors import UserError
from dpa1.training.loggers import COLUMNS, CsvLogger, MLflow, TensorBoard, WeightsAndBiases, check_installed
from dpa1.training.progress import Report

ROW = {"step": 20, "learning_rate": 1e-3, "train_loss": 2.5, "train_energy_rmse": 0.0123, "train_force_rmse": 0.5,
       "valid_loss": 3.0, "valid_force_rmse": 0.75, "valid_virial_rmse": math.nan, "seconds": 1.5}  # fmt: skip


def test_csv_cuts_back_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLogger(path, 0)
    for step in (10, 20, 30):
        log.row({**ROW, "step": step})
    log.close()
    whole = path.read_text()
    path.write_text(whole[:-7])  # the last line is half written
    CsvLogger(path, 25).close()
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:3])
    CsvLogger(path, 0).close()
    assert path.read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_logger_is_an_error_with_the_remedy(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=rf"pip install 'dpa1\[{name}\]'"):
        check_installed([name])


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_writes_events(tmp_path):
    log = TensorBoard(tmp_path)
    log.row(ROW)
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_wandb_runs_offline(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    module = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    log = WeightsAndBiases(tmp_path, {"seed": 1})
    log.row(ROW)
    log.close()
    assert calls[0]["mode"] == "offline"
    assert calls[1][0] == 20
    assert "valid_virial_rmse" not in calls[1][1]
    assert calls[2] == "end"


def test_mlflow_keeps_a_local_store(tmp_path, monkeypatch):
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            assert tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, artifact_location):
            return "7"

        def create_run(self, experiment, run_name):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))

        def log_param(self, run, key, value):
            calls.append((key, value))

        def log_metric(self, run, name, value, step):
            calls.append((name, value, step))

        def set_terminated(self, run):
            calls.append("end")

    module = types.SimpleNamespace(tracking=types.SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    log = MLflow(tmp_path, {"training": {"steps": 5}})
    log.row(ROW)
    log.close()
    assert ("training.steps", "5") in calls
    assert ("train_loss", 2.5, 20) in calls
    assert calls[-1] == "end"


def test_plain_lines_show_rate_time_left_and_milli_units(tmp_path, capsys):
    report = Report()
    report.open_log(tmp_path)
    report.start(0, 20)
    report.row(ROW)
    report.stop()
    report.close()
    line = capsys.readouterr().out
    for text in ("step 20/20", "steps/s", "left", "energy 12.3 meV/atom", "force 500 | 750 meV/Å"):
        assert text in line
    assert "virial" not in line
    assert "force 500 | 750 meV/Å" in (tmp_path / "train.log").read_text()


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    report = Report()
    assert report.console.is_terminal
    report.start(0, 20)
    report.advance(5)
    report.row(ROW)
    report.close()
    assert "20/20" in capsys.readouterr().out


def test_quiet_writes_only_the_log(tmp_path, capsys):
    report = Report(quiet=True)
    report.say("hello")
    report.open_log(tmp_path)
    report.close()
    assert capsys.readouterr().out == ""
    assert "hello" in (tmp_path / "train.log").read_text()
