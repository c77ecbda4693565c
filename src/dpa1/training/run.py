"""``train``: from a configuration to a trained model, with everything on the way in one run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from dpa1.batch import make_batch
from dpa1.config.run import RunConfig, config_from, load_config, write_config
from dpa1.data.read import iter_frames
from dpa1.errors import UserError
from dpa1.frames import Frame
from dpa1.model.file import save_model
from dpa1.model.metrics import Metrics
from dpa1.model.potential import Potential
from dpa1.training import checkpoint
from dpa1.training.bias import Pins, isolated_atoms
from dpa1.training.distributed import World, join, leave
from dpa1.training.feed import Feed
from dpa1.training.loggers import open_loggers
from dpa1.training.loss import LABELS
from dpa1.training.progress import Report
from dpa1.training.statistics import install, measure
from dpa1.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes
    ----------
    model: path of the trained model, ``<output>/model.dpa1``.
    folder: the run folder.
    steps: optimizer steps done.
    seconds: time in the training loop.
    valid, test: errors of the model as ``Metrics.result`` gives them (eV/atom, eV/Å), empty without such data.
    """

    model: Path
    folder: Path
    steps: int
    seconds: float
    valid: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)


def train(
    config: RunConfig | dict[str, Any] | str | Path, *, resume: bool = False, quiet: bool = False
) -> RunResult:
    """Train a potential as ``config`` (or the file it names) says.

    Parameters
    ----------
    resume: continue the interrupted run in the output folder, exactly where its last checkpoint stands.
    quiet: nothing on the screen; ``train.log`` is written all the same.

    Raises
    ------
    UserError
        when configuration or data are wrong, or the output folder already holds a run; nothing is overwritten.
    RunError
        when a loss or gradient is not finite, or a signal stopped the run; the sentence names the checkpoint.
    """
    if isinstance(config, str | Path):
        config = load_config(config)
    elif isinstance(config, dict):
        config = config_from(config, "configuration")
    folder = Path(config.output)
    if not resume and (folder / "config.yaml").exists():
        raise UserError(f"{folder}: already holds a run; choose another output, or continue it with --resume")
    world = join(config.training.device)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder if world.main else None, quiet=quiet or not world.main)
    try:
        return _train(config, folder, world, report, resume)
    finally:
        report.close()
        leave()


def _train(config: RunConfig, folder: Path, world: World, report: Report, resume: bool) -> RunResult:
    frames = _read(config.data.train)
    train_frames, valid_frames = _split(frames, config)
    elements = tuple(chemical_symbols[z] for z in sorted({int(z) for f in frames for z in f.numbers}))
    model = config.model.model_copy(update={"elements": config.model.elements or elements})
    rng = np.random.default_rng(config.seed)
    chosen = rng.permutation(len(train_frames))[: config.training.statistics_frames]
    sample = [train_frames[i] for i in chosen]
    statistics = measure((make_batch([f], model.cutoff) for f in sample), model)
    if model.convention == "smooth" and model.mean_neighbors is None:
        model = model.model_copy(update={"mean_neighbors": round(statistics.mean_neighbors, 4)})
    torch.manual_seed(config.seed)
    potential = Potential(model)
    install(potential, statistics)
    numbers = [atomic_numbers[e] for e in potential.elements]
    counts = np.array([[(f.numbers == z).sum() for z in numbers] for f in sample if f.energy is not None])
    energies = np.array([f.energy for f in sample if f.energy is not None])
    if len(energies):
        potential.energy_bias[0] = torch.from_numpy(np.linalg.lstsq(counts, energies, rcond=None)[0])
    potential.to(world.device)
    budget, seed = config.training.budget, config.seed
    feed = Feed(train_frames, model.cutoff, budget, seed, world.rank, world.size)
    valid = Feed(valid_frames, model.cutoff, budget, seed, world.rank, world.size) if valid_frames else None
    config = config.model_copy(update={"model": model})
    start = checkpoint.latest(folder / "checkpoints") if resume else None
    if world.main:
        write_config(config, folder / "config.yaml")
    loggers = open_loggers(config.loggers, folder, config.model_dump(mode="json"), 0) if world.main else []
    trainer = Trainer(
        potential, config.training, config.loss, world, feed, valid, folder, loggers, report, None, None
    )
    if start:
        trainer.load(start)
    trainer.run()
    trainer.restore_best()
    path = folder / "model.dpa1"
    if world.main:
        save_model(potential, path)
    return RunResult(path, folder, trainer.progress.step, trainer.progress.seconds)


def _read(sources: Any) -> list[Frame]:
    return [f for s in sources for f in iter_frames(s.path, s.labels or None)]


def _split(frames: list[Frame], config: RunConfig) -> tuple[list[Frame], list[Frame]]:
    valid = config.data.valid
    if valid is None:
        return frames, []
    if isinstance(valid, float):
        order = np.random.default_rng([config.seed, 1]).permutation(len(frames))
        n = max(1, round(valid * len(frames)))
        return [frames[i] for i in np.sort(order[n:])], [frames[i] for i in np.sort(order[:n])]
    return frames, _read(valid)
