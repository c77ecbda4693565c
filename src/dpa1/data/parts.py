"""The data section of a run, opened: training, validation and test frames, and the outliers that were left out."""

from __future__ import annotations

from typing import NamedTuple

from dpa1.config.data import DataConfig
from dpa1.data.dataset import Dataset, open_dataset
from dpa1.data.outliers import Dropped, drop_outliers
from dpa1.data.overlap import hold_out
from dpa1.errors import UserError


class Parts(NamedTuple):
    """What ``open_data`` found.

    Attributes
    ----------
    dropped: training frames left out as outliers.
    copies: how many frames that are there once more made validation frames be drawn by structure, not by frame.
    """

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    dropped: list[Dropped]
    copies: int = 0


def open_data(config: DataConfig, seed: int) -> Parts:
    """Open a data section.

    Outliers are left out before a fraction is held out for validation, of which no frame is a copy of a training frame;
    validation and test data that are named stay whole.

    Raises
    ------
    UserError
        as ``dpa1.read`` does; when nothing is left after the outliers; when all frames are copies of one.
    """
    train, dropped = drop_outliers(
        open_dataset(config.train, config.labels, config.type_map), config.max_force, config.max_residual
    )
    valid: Dataset | None = None
    copies = 0
    if isinstance(config.valid, float):
        train, valid, copies = hold_out(train, config.valid, seed)
        if valid is None:
            raise UserError(
                f"'data.valid' is {config.valid:g}, but all {len(train)} training frames are copies of one, so none can be held "
                "out; name validation files, or set data.valid to null"
            )
    elif config.valid is not None:
        valid = open_dataset(config.valid, config.labels, config.type_map)
    test = None if config.test is None else open_dataset(config.test, config.labels, config.type_map)
    return Parts(train, valid, test, dropped, copies)
