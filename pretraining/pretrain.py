"""Pretrain the model ``pbe`` on open PBE data over 94 elements: one command, taken up again where it was interrupted.

    python pretraining/pretrain.py DATASETS RUN [key=value …]

DATASETS is the folder of data sets named in pretraining/sources.py, RUN the folder everything is written to. Called again
with the same folders it goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sources import data_section, prepare

from dpa1.cli.train import _overrides
from dpa1.config.run import config_from, read_values
from dpa1.errors import UserError
from dpa1.training.run import train

HERE = Path(__file__).parent


def main(datasets: Path, folder: Path, arguments: list[str]) -> None:
    """Prepare the data unless that is done, then train or go on training."""
    data, run = folder / "data", folder / "run"
    if not (data / "held_back.json").exists():
        prepare(datasets, data)
    values = read_values(HERE / "pbe.yaml")
    values["data"] = {**data_section(data), **values["data"]}
    values["output"] = str(run)
    config = config_from(values, HERE / "pbe.yaml", _overrides(arguments))
    train(config, resume=(run / "checkpoints").exists())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except UserError as error:
        sys.exit(f"Error: {error}")
