"""Pretrain the model ``pbe`` on open PBE data over the periodic table: one command, which goes on where it was interrupted.

    python pretraining/pretrain.py DATASETS FOLDER [--from MODEL] [key=value …]
    python pretraining/pretrain.py --install FOLDER [--best]

DATASETS is the folder of data sets that pretraining/sources.py names, FOLDER takes everything that is written. The run of
pbe.yaml is followed by the stages of larger-steps.yaml, each from the weights of the one before, in FOLDER/run-1, run-2, …
Called again with the same folders, it goes on from the last checkpoint. ``key=value`` holds for every stage; in the first,
``training.steps=N`` may shorten or lengthen the run as long as its learning rate is still constant. ``--from``: the last
stage alone, from the weights of a model such as ``pbe``. ``--install`` makes the last stage that has finished (with
``--best`` the best model so far) the model that comes with the package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from card import before, history, history_of_run, install
from sources import data_section, prepare

from dpa1.cli.train import parse_overrides
from dpa1.config.run import config_from, read_values
from dpa1.errors import RunError, UserError
from dpa1.interop.load import load_potential
from dpa1.interop.shipped import FOLDER
from dpa1.model.file import load_model
from dpa1.training.run import train

HERE = Path(__file__).parent
FINISHED, BEST = "model.dpa1", "best.dpa1"


def pretrain(datasets: Path, folder: Path, arguments: list[str], start: str | None = None) -> None:
    """Prepare the data unless that is done, then train or go on training; ``start``: the model to begin the last stage with."""
    data = folder / "data"
    if not (data / "held_back.json").exists():
        prepare(datasets, data)
    changes = stages()
    runs = runs_in(folder)
    if start and (runs[0] / "config.yaml").exists():
        raise UserError(f"{runs[0]} starts from random weights; for a run that starts from {start} name another folder")
    begun = [k for k, run in enumerate(runs) if (run / "config.yaml").exists()]
    first = begun[-1] if begun else len(runs) - 1 if start else 0
    for k in range(first, len(runs)):
        if not (runs[k] / FINISHED).exists():
            _stage(runs[k], data, changes[k] | parse_overrides(arguments), start or (runs[k - 1] if k else None))


def _stage(run: Path, data: Path, changes: dict[str, Any], start: str | Path | None) -> None:
    """Train, or go on training, one stage; ``start``: a model, or the run before, whose weights it starts from."""
    values = read_values(HERE / "pbe.yaml")
    values["data"] = {**data_section(data), **values["data"]}
    values["output"] = str(run)
    config = config_from(values, HERE / "pbe.yaml", changes)
    resume, initial = (run / "config.yaml").exists(), None
    if not resume and isinstance(start, str):
        initial = load_potential(start)
        before(run).write_text(json.dumps(history(initial, start)), encoding="utf-8")
    elif not resume and start is not None:
        initial = load_model(start / FINISHED)
        before(run).write_text(json.dumps(history_of_run(start)), encoding="utf-8")
    train(config, resume=resume, initial=initial)


def stages() -> list[dict[str, Any]]:
    """What each stage changes in pbe.yaml: dotted keys and values; nothing in the first."""
    return [{}, *read_values(HERE / "larger-steps.yaml")]


def runs_in(folder: Path) -> list[Path]:
    """The folder of each stage, begun or not."""
    return [folder / f"run-{number}" for number in range(1, len(stages()) + 1)]


def last_run(folder: Path, name: str) -> Path:
    """The folder of the last stage that has left a model of that name."""
    found = [run for run in runs_in(folder) if (run / name).exists()]
    if not found:
        raise UserError(
            f"{folder}: no stage of a pretraining there has left a {name} yet; call the command that trains it again"
        )
    return found[-1]


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    if arguments[:1] == ["--install"] and len(arguments) > 1:
        folder = Path(arguments[1])
        name = BEST if "--best" in arguments else FINISHED
        run = last_run(folder, name)
        install(run, folder / "data", FOLDER / "pbe.dpa1", name)
        print(f"wrote {FOLDER / 'pbe.dpa1'} from {run / name}")
    elif len(arguments) > 1:
        datasets, folder, *rest = arguments
        start = rest[1] if rest[:1] == ["--from"] and len(rest) > 1 else None
        pretrain(Path(datasets), Path(folder), rest[2:] if start else rest, start)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, RunError) as error:
        sys.exit(f"Error: {error}")
