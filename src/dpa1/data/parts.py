"""The data section of a run, opened: training, validation and test frames, and the outliers that were left out."""

from __future__ import annotations

from typing import NamedTuple

from dpa1.config.data import DataConfig
from dpa1.data.dataset import Dataset, open_dataset
from dpa1.data.outliers import Dropped, drop_outliers


class Parts(NamedTuple):
    """What ``open_data`` found; ``dropped`` are training frames left out as outliers."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    dropped: list[Dropped]


def open_data(config: DataConfig, seed: int) -> Parts:
    """Open a data section.

    Outliers are left out before a fraction is held out for validation; validation and test data that are named stay whole.

    Raises
    ------
    UserError
        as ``dpa1.read`` does; when nothing is left after the outliers.
    """
    train, dropped = drop_outliers(
        open_dataset(config.train, config.labels, config.type_map), config.max_force, config.max_residual
    )
    valid: Dataset | None = None
    if isinstance(config.valid, float):
        train, valid = train.split(config.valid, seed)
    elif config.valid is not None:
        valid = open_dataset(config.valid, config.labels, config.type_map)
    test = None if config.test is None else open_dataset(config.test, config.labels, config.type_map)
    return Parts(train, valid, test, dropped)
