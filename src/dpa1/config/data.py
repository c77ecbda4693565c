"""The data section: where frames come from, what their labels are called, what is held out."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from pydantic import Field, ValidationInfo, field_validator, model_validator

from dpa1.config.base import Section
from dpa1.errors import did_you_mean

Quantity = Literal["energy", "forces", "virial", "stress", "atomic_energies", "weight", "level"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class SourceConfig(Section):
    """One place frames come from, with what holds for all of them."""

    path: str = Field(min_length=1)
    """File, folder, glob pattern, or ``file.h5#/group``."""
    name: str | None = None
    """What logs and tables call this source; its path when not given."""
    weight: float = Field(1.0, gt=0)
    """Factor on the loss of every frame from here."""
    share: float | None = Field(None, gt=0)
    """Training data: chance, relative to the other sources, that a frame is drawn from here. All sources give one, or none."""
    level: str | None = None
    """Level of theory of the labels, for all frames from here; what the frames say themselves when not given."""
    labels: dict[Quantity, str] = Field(default_factory=dict)
    """What the labels are called here, e.g. ``{energy: my_energy}``; wins over ``data.labels``."""
    type_map: tuple[str, ...] | None = None
    """Elements by type index, for DeePMD systems without a ``type_map.raw``; wins over ``data.type_map``."""

    @field_validator("type_map")
    @classmethod
    def _elements(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return _known(symbols)


class DataConfig(Section):
    """Training, validation and test data. Each is a path, a list of paths, or a list of sections with ``path``."""

    train: tuple[SourceConfig, ...]
    """Frames to train on."""
    valid: tuple[SourceConfig, ...] | Fraction | None = 0.1
    """Frames to validate on, or the fraction of the training frames to hold out for it; 0 or null for none."""
    test: tuple[SourceConfig, ...] | None = None
    """Frames to evaluate on when training has ended."""
    sampling_temperature: float | None = Field(None, ge=1)
    """T: a source of n frames is drawn from with chance ∝ n^(1/T). 1: every frame is equal; large: every source is."""
    max_force: float | None = Field(None, gt=0)
    """eV/Å; training frames with a longer force on some atom are left out, and listed in ``dropped.csv``."""
    max_residual: float | None = Field(None, gt=0)
    """eV/atom; the same for frames whose energy is farther than this from the composition fit of their level."""
    labels: dict[Quantity, str] = Field(default_factory=dict)
    """What the labels are called in the files, where they cannot be guessed: ``{energy: my_energy}``."""
    type_map: tuple[str, ...] | None = None
    """Elements by type index, for DeePMD systems without a ``type_map.raw``."""

    @field_validator("train", "valid", "test", mode="before")
    @classmethod
    def _sources(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, (str, os.PathLike, dict)):
            value = [value]
        if isinstance(value, (list, tuple)):
            if not value:
                raise ValueError("names no data; give a path or leave the key out")
            return tuple({"path": os.fspath(v)} if isinstance(v, (str, os.PathLike)) else v for v in value)
        if info.field_name == "valid" and isinstance(value, (int, float)) and value == 0:
            return None
        if isinstance(value, (int, float)) and not 0 < value < 1:
            raise ValueError("give paths, or a fraction between 0 and 1")
        return value

    @field_validator("type_map")
    @classmethod
    def _elements(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return _known(symbols)

    @model_validator(mode="after")
    def _one_way_of_sampling(self) -> DataConfig:
        shares = [source.share is not None for source in self.train]
        if any(shares) and not all(shares):
            without = self.train[shares.index(False)]
            raise ValueError(
                f"some sources have a share and {without.name or without.path} has none; give all one, or none"
            )
        if any(shares) and self.sampling_temperature is not None:
            raise ValueError("sampling_temperature and shares are both given; keep one")
        elsewhere = [s for part in (self.valid, self.test) if isinstance(part, tuple) for s in part]
        if any(source.share is not None for source in elsewhere):
            raise ValueError("share belongs to training data; drop it from validation and test data")
        return self


def _known(symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for symbol in symbols or ():
        if symbol not in chemical_symbols[1:]:
            raise ValueError(f"unknown element symbol '{symbol}'{did_you_mean(symbol, chemical_symbols[1:])}")
    return symbols
