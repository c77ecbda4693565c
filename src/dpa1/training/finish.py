"""What happens after the last step: errors on validation and test data, the model file, the summary."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa1.config.run import RunConfig, complete_values
from dpa1.container import replace_file
from dpa1.data.dataset import Dataset
from dpa1.data.loader import Loader
from dpa1.errors import counted
from dpa1.model.file import save_model
from dpa1.model.metrics import Metrics
from dpa1.model.potential import Potential
from dpa1.training.bias import frames_of_level
from dpa1.training.distributed import World
from dpa1.training.per_source import PerSource, several, table
from dpa1.training.prepare import Data, evaluation_loader
from dpa1.training.trainer import Progress
from dpa1.units import rmse_in_words


def measure_errors(potential: Potential, share: tuple[Loader, list[np.ndarray]], world: World) -> dict[str, Any]:
    """Errors over all processes' shares of some frames, as ``Metrics.result`` gives them."""
    loader, batches = share
    metrics = Metrics()
    assert isinstance(loader.dataset, Dataset)
    per_source = PerSource(loader.dataset, potential.levels, world.device)
    for indices in batches:
        batch = loader.make(indices).to(world.device)
        per_source.add(indices, metrics.update(batch, potential.predict(batch)))
    metrics.sums = world.add(metrics.sums.to(world.device))
    result = metrics.result()
    rows = per_source.rows(world)
    return {
        **{k: v for k, v in result.items() if k not in ("per_source", "per_level", "worst")},
        "sources": rows if several(rows) else [],
    }


def evaluate_parts(
    potential: Potential, data: Data, config: RunConfig, world: World, valid: tuple[Loader, list[np.ndarray]] | None
) -> dict[str, dict[str, Any]]:
    """``valid`` and ``test`` errors of the finished model; empty where there is no such data."""
    errors: dict[str, dict[str, Any]] = {"valid": {}, "test": {}}
    if valid is not None:
        errors["valid"] = measure_errors(potential, valid, world)
    if data.test is not None:
        share = evaluation_loader(data.test, config, potential, world)
        errors["test"] = measure_errors(potential, share, world)
    return errors


def save(
    potential: Potential,
    config: RunConfig,
    data: Data,
    folder: Path,
    progress: Progress,
    errors: dict[str, dict[str, Any]],
    world: World,
) -> Path:
    """Write ``model.dpa1`` with its provenance, and ``errors.json``."""
    path = folder / "model.dpa1"
    if world.main:
        numbers = {part: _numbers(values) for part, values in errors.items() if values}
        potential.info |= {
            "trained": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "dpa1": version("dpa1"),
            "torch": str(torch.__version__),
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "seed": config.seed,
            "sources": data.train.sources[:50],
            "level_data": {
                name: {
                    "elements": data.train.table.take(chosen).elements,
                    "frames": len(chosen),
                }
                for level, name in enumerate(potential.levels)
                for chosen in [frames_of_level(data.train, potential.levels, level)]
            },
            "dropped": len(data.dropped),
            "frames": {
                name: len(part)
                for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test))
                if part is not None
            },
            "errors": numbers,
            "run": {key: value for key, value in complete_values(config).items() if key != "model"},
        }
        save_model(potential, path)
        replace_file(folder / "errors.json", json.dumps(numbers, indent=2).encode())
    world.wait()
    return path


def summary(errors: dict[str, dict[str, Any]], model: Path, progress: Progress) -> str:
    """The last lines of a run."""
    lines = [f"finished {counted(progress.step, 'step')} in {progress.seconds:.0f} s"]
    if progress.best_step:
        lines[0] += f"; the model is the best one, of step {progress.best_step}"
    for part, values in errors.items():
        if values:
            shown = rmse_in_words(values) or "they have no labels"
            lines.append(f"RMSE on {counted(values['n_frames'], f'{part} frame')}: {shown}")
            if values["sources"]:
                lines.append(table(part, values["sources"]))
    return "\n".join([*lines, f"model: {model}"])


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what was not measured is left out."""
    kept = {k: v for k, v in values.items() if not (isinstance(v, float) and math.isnan(v)) and k != "per_element"}
    sources = [_numbers(row) for row in kept.pop("sources", [])]
    return {**kept, "sources": sources} if sources else kept
