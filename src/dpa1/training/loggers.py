"""Where the numbers of a run go: metrics.csv always; TensorBoard, Weights & Biases and MLflow when asked for."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from dpa1.container import replace_file
from dpa1.errors import needs

ERRORS = tuple(f"{q}_{kind}" for q in ("energy", "force", "virial") for kind in ("rmse", "mae"))
COLUMNS = (
    "step", "epoch", "learning_rate", "train_loss", *(f"train_{e}" for e in ERRORS),
    "valid_loss", *(f"valid_{e}" for e in ERRORS), "gradient", "seconds",
)  # fmt: skip


# What has to be importable; the slim MLflow has no database.
MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.store.tracking.sqlalchemy_store"}


class Logger(Protocol):
    """Takes one row of numbers at a time; absent numbers are NaN or left out."""

    def row(self, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class CsvLogger:
    """``metrics.csv``; energies in eV/atom, forces in eV/Å, virials in eV/atom, empty cells where nothing was measured.

    ``after`` cuts a file of an interrupted run back to the rows up to that step, so that none appears twice.
    """

    def __init__(self, path: Path, after: int) -> None:
        rows: list[list[str]] = []
        if after and path.exists():
            # The last line may be half written: a row counts only with all its columns and its line end.
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line.rstrip("\r\n").split(",") for line in lines[1:] if line.endswith("\n")]
            rows = [row for row in whole if len(row) == len(COLUMNS) and int(row[0]) <= after]
        text = "\n".join(",".join(row) for row in [list(COLUMNS), *rows]) + "\n"
        replace_file(path, text.encode())
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def row(self, values: dict[str, float]) -> None:
        self._writer.writerow([_cell(values.get(column, math.nan)) for column in COLUMNS])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def row(self, values: dict[str, float]) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """An offline run in the run folder; ``wandb sync`` uploads it when one wants to."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project="dpa1", name=folder.name, dir=str(folder), config=config, mode="offline")

    def row(self, values: dict[str, float]) -> None:
        self._run.log(_numbers(values), step=int(values["step"]))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A local MLflow database in the run folder: ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import mlflow

        # MLflow 3 no longer writes its former folders of files.
        self._client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        experiment = self._client.get_experiment_by_name("dpa1")
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment("dpa1", artifact_location=(folder / "mlflow").resolve().as_uri())
        )
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        for key, value in _flat(config).items():
            self._client.log_param(self._run, key, str(value)[:500])

    def row(self, values: dict[str, float]) -> None:
        for name, value in _numbers(values).items():
            self._client.log_metric(self._run, name, value, step=int(values["step"]))

    def close(self) -> None:
        self._client.set_terminated(self._run)


def check_installed(names: Sequence[str]) -> None:
    """Before a run begins: every logger that is asked for can be imported.

    Raises
    ------
    UserError
        naming the package that is missing and how to install it.
    """
    for name in names:
        try:
            import_module(MODULES.get(name, name))
        except ImportError:
            raise needs(name, name, f"the {name} logger") from None


def open_loggers(names: Sequence[str], folder: Path, config: dict[str, Any], after: int) -> list[Logger]:
    """The loggers of a run that starts (or goes on) after step ``after``; metrics.csv always."""
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder),
        "wandb": lambda: WeightsAndBiases(folder, config),
        "mlflow": lambda: MLflow(folder, config),
    }
    return [CsvLogger(folder / "metrics.csv", after), *(makers[name]() for name in names)]


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"


def _numbers(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "step" and not math.isnan(value)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out
