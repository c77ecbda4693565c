"""Pretrain the model ``pbe`` on open PBE data over the periodic table: one command, which goes on where it was interrupted.

    python pretraining/pretrain.py DATASETS FOLDER [--from MODEL] [key=value …]
    python pretraining/pretrain.py --install FOLDER [--best]

DATASETS is the folder of data sets that pretraining/sources.py names, FOLDER takes everything that is written. Called again
with the same folders, it goes on from the last checkpoint; ``training.steps=N`` may then shorten or lengthen the run as long
as its learning rate is still constant. ``--from``: a new run that starts from the weights of a model, such as ``pbe``, not from
random ones; the whole schedule is gone through again. ``--install`` makes the finished run (with ``--best`` the best model so far) the model
that comes with the package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from card import BEFORE, history, install
from sources import data_section, prepare

from dpa1.cli.train import parse_overrides
from dpa1.config.run import config_from, read_values
from dpa1.errors import RunError, UserError
from dpa1.interop.load import load_potential
from dpa1.interop.shipped import FOLDER
from dpa1.training.run import train

HERE = Path(__file__).parent


def pretrain(datasets: Path, folder: Path, arguments: list[str], start: str | None = None) -> None:
    """Prepare the data unless that is done, then train or go on training; ``start``: the model to begin with."""
    data, run = folder / "data", folder / "run"
    if not (data / "held_back.json").exists():
        prepare(datasets, data)
    values = read_values(HERE / "pbe.yaml")
    values["data"] = {**data_section(data), **values["data"]}
    values["output"] = str(run)
    config = config_from(values, HERE / "pbe.yaml", parse_overrides(arguments))
    resume = (run / "config.yaml").exists()
    initial = load_potential(start) if start and not resume else None
    if initial is not None:
        (folder / BEFORE).write_text(json.dumps(history(initial, str(start))), encoding="utf-8")
    train(config, resume=resume, initial=initial)


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    if arguments[:1] == ["--install"] and len(arguments) > 1:
        folder = Path(arguments[1])
        name = "best.dpa1" if "--best" in arguments else "model.dpa1"
        install(folder / "run", folder / "data", FOLDER / "pbe.dpa1", name)
        print(f"wrote {FOLDER / 'pbe.dpa1'}")
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
