"""``train``: from a configuration to a trained model, with everything on the way in one run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa1.config.run import RunConfig, complete_values, config_from, load_config, write_config
from dpa1.container import replace_file
from dpa1.data.outliers import dropped_csv, summary
from dpa1.data.overlap import overlap
from dpa1.data.table import LABELS
from dpa1.errors import InterruptedRunError, RunError, UserError, counted
from dpa1.kernels.allocator import keep_freed_memory
from dpa1.model.potential import Potential
from dpa1.training import bias, checkpoint, finish
from dpa1.training.distributed import World, join, leave
from dpa1.training.finetune import Change, Finetune
from dpa1.training.folder_lock import lock
from dpa1.training.from_scratch import FromScratch
from dpa1.training.loggers import check_installed, open_loggers
from dpa1.training.per_source import SourceCsv
from dpa1.training.prepare import (
    Data,
    evaluation_loader,
    frame_chances,
    make_loader,
    resolve_steps,
)
from dpa1.training.progress import Report
from dpa1.training.resume import stored_config
from dpa1.training.schedule import Schedule
from dpa1.training.trainer import Trainer

CONTENT = """run folder {folder}
  config.yaml    the complete configuration      checkpoints/   to continue with --resume
  train.log      these lines                     best.dpa1      best model so far, by validation
  metrics.csv    errors along the run            model.dpa1     the trained model, at the end"""


WRITTEN = (
    "model.dpa1", "best.dpa1", "metrics.csv", "sources.csv", "dropped.csv", "errors.json", "report.html", "learning_curve.png",
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes
    ----------
    model: path of the trained model, ``<output>/model.dpa1``.
    folder: the run folder.
    steps: optimizer steps done.
    seconds: time in the training loop.
    valid, test: errors of the model (energy_rmse eV/atom, force_rmse eV/Å…), empty without such data.
    """

    model: Path
    folder: Path
    steps: int
    seconds: float
    valid: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished run with all it held, for what comes after it (its report).

    Attributes
    ----------
    potential: the trained model.  data, config: what it was trained on and how.  folder: the run folder.
    errors: ``valid`` and ``test`` errors of all frames, empty without such data.
    steps, seconds: of the training loop.
    change: what it changed of the model it started from, if it did.
    """

    potential: Potential
    data: Data
    config: RunConfig
    folder: Path
    errors: dict[str, dict[str, Any]]
    steps: int
    seconds: float
    change: Change | None = None


Finished = Callable[[Outcome], str]  # returns a line for the screen and the log


def train(
    config: RunConfig | dict[str, Any] | str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    finished: Finished | None = None,
    base: Potential | None = None,
    initial: Potential | None = None,
) -> RunResult:
    """Train a potential as ``config`` (or the file it names) says.

    Parameters
    ----------
    resume: continue the interrupted run in the output folder exactly where its last checkpoint stands.
    quiet: nothing on the screen; ``train.log`` is written all the same.
    finished: called by the main process after the model was saved.
    base: the model that ``finetune.base`` names.
    initial: a model of the same architecture whose weights, statistics and energy bias this run starts from, instead of
        new ones; a run that is resumed has them in its checkpoint.

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
    world = join(config.training.device)
    report = Report(quiet=quiet or not world.main)
    keep_freed_memory()
    held = ExitStack()
    try:
        _check_folder(folder, resume, world)
        check_installed(config.loggers)
        if config.training.epochs is None:
            Schedule(config.training)  # an impossible one is refused before anything is read
        if resume:
            config = stored_config(folder, config)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        return _train(config, folder, world, report, resume, held, finished, base, initial)
    except RunError as error:
        report.note(f"{'stopped' if isinstance(error, InterruptedRunError) else 'failed'}: {error}")
        raise
    finally:
        report.close()
        held.close()
        leave()


def _check_folder(folder: Path, resume: bool, world: World) -> None:
    # The main process looks for all: another one might look when the main one has already begun to write.
    holds = world.agree(world.main and (folder / "config.yaml").exists())
    if holds and not resume:
        raise UserError(f"{folder}: already holds a run; choose another output, or continue it with --resume")
    mine = [name for name in WRITTEN if (folder / name).exists()]
    if world.agree(world.main and bool(mine) and not holds and not resume):
        raise UserError(f"{folder}: holds {', '.join(mine)} already, which a run would replace; choose another output")
    if resume and not holds:
        raise UserError(
            f"{folder.absolute()}: holds no run to resume; call from the folder the run was started in, give its output folder, or "
            "drop --resume to start it"
        )


def _enter_folder(folder: Path, resume: bool, world: World, report: Report, held: ExitStack) -> None:
    """Create the run folder, which nothing before this point has touched, and hold it until the run ends."""
    if not world.main:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.callback(lock(folder).release)
        if not resume and (folder / "config.yaml").exists():
            raise UserError(f"{folder}: another run has just begun there; choose another output")
        report.open_log(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output") from None
    report.say(CONTENT.format(folder=folder))


def _train(
    config: RunConfig,
    folder: Path,
    world: World,
    report: Report,
    resume: bool,
    held: ExitStack,
    finished: Finished | None,
    base: Potential | None,
    initial: Potential | None,
) -> RunResult:
    if config.finetune.base and base is None:
        raise ValueError("finetune.base is set, so the model it names belongs into 'base'")
    start = checkpoint.latest(folder / "checkpoints") if resume else None
    run = FromScratch(config, initial, start) if base is None else Finetune(config, base)
    config, data = run.config, run.data
    bias.given_bias(config, data.levels)  # refused, if so, before anything is written
    _describe(data, config, report)
    _enter_folder(folder, resume, world, report, held)
    if data.dropped and world.main:
        replace_file(folder / "dropped.csv", dropped_csv(data.dropped).encode())
    potential, isolated = run.model(), run.isolated()
    report.say("\n".join(run.lines))
    potential.to(world.device)
    pins = bias.Pins(potential, *isolated) if any(isolated) else None
    train = make_loader(data.train, config, potential, world)
    config = resolve_steps(config.model_copy(update={"model": potential.config}), train.sampler)
    valid = evaluation_loader(data.valid, config, potential, world) if data.valid else None
    report.say(run.begin(potential, train, pins, world, valid))
    trainer = Trainer(potential, config, world, train, valid, folder, report, pins)
    if start is not None:
        trainer.load(start)
        report.say(f"continuing from {start}")
    world.share([*potential.parameters(), *potential.buffers()])
    if world.main:
        checkpoint.remove_halves(folder)
        write_config(config, folder / "config.yaml")
        if data.valid is not None and (len(data.valid.entries) > 1 or len(data.levels) > 1):
            trainer.source_log = SourceCsv(folder / "sources.csv", trainer.progress.step)
        trainer.loggers = open_loggers(config.loggers, folder, complete_values(config), trainer.progress.step)
    try:
        trainer.run()
    finally:
        train.close()
        for logger in trainer.loggers:
            logger.close()
        if trainer.source_log:
            trainer.source_log.close()
    trainer.restore_best()
    if config.training.refit_bias:
        report.say(run.refit(potential, train, pins, world))
    errors = finish.evaluate_parts(potential, data, config, world, valid)
    report.say(run.end(potential, errors, world))
    model = finish.save(potential, config, data, folder, trainer.progress, errors, world)
    report.say(finish.summary(errors, model, trainer.progress))
    if finished is not None and world.main:
        progress = trainer.progress
        outcome = Outcome(potential, data, config, folder, errors, progress.step, progress.seconds, run.change)
        report.say(finished(outcome))
    world.wait()  # whoever started the processes may end them all once one has gone
    return RunResult(model, folder, trainer.progress.step, trainer.progress.seconds, **errors)


def _describe(data: Data, config: RunConfig, report: Report) -> None:
    report.say(data.train.report.shortened())
    if data.dropped:
        report.say(summary(data.dropped))
    if data.copies:
        drawn = "; validation frames were drawn so that none is a copy of a training frame" if data.valid else ""
        report.say(
            f"note: {counted(data.copies, 'frame')} of the training data {'is a copy' if data.copies == 1 else 'are copies'} of "
            f"others{drawn}"
        )
    if len(data.levels) > 1 or len(data.train.entries) > 1:
        report.say(_sources(data, config))
    for name, part in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        if part is not None:
            coverage = ", ".join(f"{label} {n}" for label, n in part.coverage.items() if n)
            least, most = int(part.sizes.min()), int(part.sizes.max())
            sizes = counted(least, "atom") if least == most else f"{least}–{most} atoms"
            report.say(f"{name}: {counted(len(part), 'frame')} of {sizes}; labels: {coverage or 'none'}")
    chosen_on = len(overlap(data.valid, data.test)) if data.valid is not None and data.test is not None else 0
    if data.test is not None and chosen_on:
        report.say(
            f"note: {chosen_on} of the {counted(len(data.test), 'test frame')} are validation frames, too, on which the best model is "
            "chosen, so it looks better on them than on new ones"
        )
    if data.train.coverage["virial"] and "virial" not in config.loss.terms:
        report.say("note: the training data have virials, which the loss ignores; set loss.virial to use them")


def _sources(data: Data, config: RunConfig) -> str:
    """One line per source of the training data: level, frames, labels, share of the frames drawn."""
    train, chances = data.train, frame_chances(data.train, config)
    errors = "" if data.valid is None else " (validation errors of each in sources.csv)"
    lines = [f"levels of theory: {', '.join(data.levels)}; sources of the training data{errors}:"]
    for number, name in enumerate(train.entries):
        own = np.flatnonzero(train.entry == number)
        part = train.table.take(own)
        levels = [part.levels[k] for k in np.unique(part.level) if k >= 0] or [data.levels[0]]
        labels = ", ".join(f"{label} {part.has(label).sum()}" for label in LABELS if part.has(label).any())
        share = len(own) / len(train) if chances is None else float(chances[own].sum())
        lines.append(
            f"  {name}: level {', '.join(levels)}, {counted(len(own), 'frame')} ({labels}), {100 * share:.3g} % of the frames drawn"
        )
    return "\n".join(lines)
