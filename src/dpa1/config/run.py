"""A whole training run in one configuration, and how it is read from YAML, JSON or TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dpa1.config.base import Section, parse
from dpa1.config.data import DataConfig
from dpa1.config.finetune import FinetuneConfig
from dpa1.config.model import ModelConfig
from dpa1.config.training import LossConfig, TrainingConfig
from dpa1.errors import UserError

Logger = Literal["tensorboard", "wandb", "mlflow"]


class RunConfig(Section):
    """Everything a training run needs. Only ``data`` must be given."""

    data: DataConfig
    """What to train, validate and test on."""
    model: ModelConfig = ModelConfig()
    """Architecture; see docs/model.md."""
    training: TrainingConfig = TrainingConfig()
    """Length, batches, learning rate."""
    loss: LossConfig = LossConfig()
    """What to fit, and how strongly."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Which trained model to start from; docs/finetune.md."""
    output: str = "run"
    """Folder the run writes into; it must not hold another run."""
    seed: int = Field(1, ge=0)
    """Seeds the initial weights, the split and the order of the frames."""
    loggers: tuple[Logger, ...] = ()
    """Further logs beside metrics.csv."""


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run configuration; ``overrides`` maps dotted keys (``training.steps``) to values.

    Data paths are looked up in the current folder first, then beside the configuration file.

    Raises
    ------
    UserError
        one sentence naming the file and the key: missing or unreadable file, unknown key (with the nearest valid
        one), wrong type, value out of range.
    """
    return config_from(read_values(path), path, overrides)


def config_from(values: Any, path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """The run configuration of values already read from ``path``."""
    for key, value in (overrides or {}).items():
        values = _with(values, key.split("."), value, key)
    if isinstance(values, dict) and "data" in values:
        values = {**values, "data": _found(values["data"], Path(path).parent)}
    return parse(RunConfig, values, str(path))


def read_values(path: str | Path) -> Any:
    """The raw content of a YAML, JSON or TOML file, chosen by its suffix."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json", ".toml"):
        raise UserError(f"{path}: a configuration ends in .yaml, .json or .toml")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    try:
        return _parsers()[suffix](text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid {suffix[1:].upper()}: {' '.join(str(error).split())}") from None


def complete_values(section: Section) -> dict[str, Any]:
    """Plain values of every key, ready for JSON or YAML; a None that is the default anyway is left out."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            values[name] = complete_values(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            values[name] = [complete_values(item) for item in value]
        elif value is None and field.get_default(call_default_factory=True) is None:
            del values[name]
    return values


def write_config(config: RunConfig, path: str | Path) -> None:
    """Write the complete configuration, defaults included, as YAML."""
    import yaml

    values = complete_values(config)
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _parsers() -> dict[str, Any]:
    import tomllib

    return {".yaml": parse_yaml, ".yml": parse_yaml, ".json": json.loads, ".toml": tomllib.loads}


def parse_yaml(text: str) -> Any:
    """YAML → values; 1e-3 is a number, and a key given twice an error (``ValueError``)."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _loader() -> Any:
    """YAML's safe loader with those two changes."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1 and key != "<<":
                    raise ValueError(f"key '{key}' is given twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    number = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader


def _with(values: Any, path: list[str], value: Any, key: str) -> Any:
    """A copy of nested ``values`` with one entry replaced."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"'{key}': '{path[0]}' cannot be set, because the part before it is not a section")
    rest = path[1:]
    return {**values, path[0]: _with(values.get(path[0]), rest, value, key) if rest else value}


def _found(value: Any, folder: Path) -> Any:
    """Every relative path that exists only beside the configuration file, made to point there."""
    if isinstance(value, dict):
        return {key: _found(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_found(item, folder) for item in value]
    if isinstance(value, str) and not Path(value).exists() and (folder / value).exists():
        return str(folder / value)
    return value
