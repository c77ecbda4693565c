"""The training loop: the same for one CPU, one GPU, several GPUs and several nodes."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.config.run import RunConfig
from dpa1.data.dataset import Dataset
from dpa1.data.loader import Loader
from dpa1.errors import InterruptedRunError
from dpa1.frames import Frame
from dpa1.model.file import save_model
from dpa1.model.metrics import Metrics, means
from dpa1.model.potential import Potential
from dpa1.signals import stop_signals
from dpa1.training import checkpoint, trouble
from dpa1.training.bias import Pins
from dpa1.training.distributed import World
from dpa1.training.ema import Average
from dpa1.training.loggers import ERRORS, Logger
from dpa1.training.loss import Loss
from dpa1.training.lowrank import LowRank, lora_matrices
from dpa1.training.optimizer import Clipper, load_optimizer_state, make_optimizer, optimizer_state
from dpa1.training.per_source import PerSource, SourceCsv, several
from dpa1.training.progress import Report
from dpa1.training.schedule import Schedule
from dpa1.training.step import Step


@dataclass
class Progress:
    """Where the run stands, beside the tensors; goes into the checkpoint header as it is."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    waiting: int = 0
    gradient: float = 0.0


class Trainer:
    """Trains ``potential`` in place. ``run`` returns when the steps are done, patience ended, or raises ``RunError``.

    Parameters
    ----------
    train: this process's endless batches.
    valid: this process's share of the validation frames, and how it is cut into batches.
    folder: run folder; checkpoints and ``best.dpa1`` go there.
    """

    def __init__(
        self,
        potential: Potential,
        run: RunConfig,
        world: World,
        train: Loader,
        valid: tuple[Loader, list[np.ndarray]] | None,
        folder: Path,
        report: Report,
        pins: Pins | None = None,
    ) -> None:
        config = run.training
        self.potential, self.config, self.world, self.folder = potential, config, world, folder
        self.train, self.valid, self.report, self.pins = train, valid, report, pins
        self.loggers: list[Logger] = []
        self.source_log: SourceCsv | None = None
        self.sources: list[dict[str, Any]] = []  # of the last validation
        self.loss, self.schedule = Loss(run.loss), Schedule(config)
        parameters = [p for p in potential.parameters() if p.requires_grad]
        biases = [p for name, p in potential.named_parameters() if name.endswith(".bias") and p.requires_grad]
        self.optimizer = make_optimizer(parameters, config.optimizer, biases)
        if run.finetune.method == "lora":
            matrices = lora_matrices(potential, run.finetune.rank)
            self.optimizer = LowRank(parameters, matrices, run.finetune.rank, config.optimizer)
        self.clipper = Clipper(config, world.device)
        self.average = Average(potential, config.ema) if config.ema else None
        self.step = Step(potential, self.loss, self.optimizer, self.clipper, world, pins, config.recompute)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.log_every = config.log_every or max(min(10, config.steps), config.steps // 200)
        self.valid_every = config.valid_every or max(min(100, config.steps), config.steps // 50)
        self.checkpoint_every = config.checkpoint_every or max(1, min(1000, config.steps // 10))
        self._saved: Path | None = None
        self._waited = self._rested = 0.0  # seconds of this run spent waiting for data: so far, and up to the last row

    def run(self) -> None:
        """Train from the present step to the last."""
        steps, state = self.config.steps, self.progress
        self.report.start(state.step, steps)
        before, begun = state.seconds, time.perf_counter()
        try:
            with stop_signals() as stop:
                enough = self._patience_ended()
                while state.step < steps and not enough:
                    number = state.step
                    place = self.train.state_dict()
                    batches = [self._next() for _ in range(self.config.accumulate)]
                    rate = self.schedule(number)
                    ramp = self.schedule.ramp(number, self.loss.config.follow_warmup)
                    outcome = self.step(batches, rate, ramp, stop.is_set())
                    if not outcome.finite:
                        raise trouble.stop(self.step, self._frames(place), ramp, self.folder, number + 1, self._saved)
                    state.step, state.gradient = number + 1, outcome.gradient
                    if self.average:
                        self.average.update(number)
                    state.seconds = before + time.perf_counter() - begun
                    enough = self._tell(state.step, rate) and self._patience_ended()
                    if outcome.stop or state.step % self.checkpoint_every == 0 or state.step == steps or enough:
                        self.save()
                    if outcome.stop and state.step < steps:
                        raise InterruptedRunError(
                            f"a signal came, so the run ended after step {state.step}; {self._saved} holds everything, continue "
                            f"with  dpa1 train {self.folder / 'config.yaml'} --resume"
                        )
                if enough:
                    self.report.say(f"no better model for {self.config.patience} validations: stopped early")
        finally:
            self.report.stop()
        self.report.note(
            f"waiting for data took {100 * self._waited / max(state.seconds - before, 1e-9):.1f} % of the time"
        )

    def _next(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self.train)
        self._waited += time.perf_counter() - begun
        return batch.to(self.world.device)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the potential has the weights that are validated and saved: the average, if there is one."""
        return self.average.applied() if self.average else nullcontext()

    def restore_best(self) -> None:
        """Give the potential the best weights that validation has seen, or else the last (averaged) ones."""
        if self.best:
            self.potential.load_state_dict(self.best)
        elif self.average:
            self.average.swap()
        if self.pins:
            self.pins.fold(self.potential)

    def _frames(self, place: dict[str, Any]) -> list[Frame]:
        """The frames of the step that began at ``place`` of the data stream."""
        self.train.load_state_dict(place)
        numbers = [int(i) for _ in range(self.config.accumulate) for i in self.train.sampler.next()]
        return [self.train.dataset[i] for i in numbers]

    def _tell(self, step: int, rate: float) -> bool:
        """Validate and log when it is time; True after a validation."""
        last = step == self.config.steps
        validate = self.valid is not None and (step % self.valid_every == 0 or last)
        if not (validate or last or step % self.log_every == 0):
            if step % 10 == 0:
                self.report.advance(step)
            return False
        sums, (frames, total) = self.step.take_sums()
        values = {"step": step, "epoch": self.train.epochs, "learning_rate": rate, "train_loss": float(total / frames)}
        values.update(_errors("train", sums))
        if validate:
            values.update(self.validate())
        values.update(
            gradient=self.progress.gradient, seconds=self.progress.seconds, waiting=self._waited - self._rested
        )
        self._rested = self._waited
        if self.world.main:
            for logger in self.loggers:
                logger.row(values)
            self.report.row(values)
            if validate and self.source_log and several(self.sources):
                self.source_log.write(step, "valid", self.sources)
        return validate

    def validate(self) -> dict[str, float]:
        """Errors on the validation frames, each counted once; keeps the model when it is the best so far."""
        assert self.valid is not None
        with self.averaged():
            if self.pins:
                self.pins.fold(self.potential)
            metrics = Metrics()
            total = torch.zeros(2, dtype=torch.float64, device=self.world.device)
            loader, batches = self.valid
            assert isinstance(loader.dataset, Dataset)
            per_source = PerSource(loader.dataset, self.potential.levels, self.world.device)
            for indices in batches:
                batch = loader.make(indices).to(self.world.device)
                prediction = self.potential.predict(batch)
                per_source.add(indices, metrics.update(batch, prediction))
                losses = self.loss(batch, prediction, ramp=0.0).detach()
                total += torch.stack([losses.sum(), torch.full_like(losses.sum(), len(batch))])
            sums = self.world.add(metrics.sums.to(self.world.device))[:4]
            self.world.add(total)
            values = {"valid_loss": float(total[0] / total[1]), **_errors("valid", sums)}
            self.sources = per_source.rows(self.world)
            self._keep_best(values[f"valid_{self.config.valid_metric}"])
        return values

    def _keep_best(self, value: float) -> None:
        state = self.progress
        if value < state.best:
            state.best, state.best_step, state.waiting = value, state.step, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.potential.state_dict().items()}
            if self.world.main:
                save_model(self.potential, self.folder / "best.dpa1")
        else:
            state.waiting += 1

    def _patience_ended(self) -> bool:
        return self.config.patience is not None and self.progress.waiting >= self.config.patience

    def save(self) -> None:
        """Write a checkpoint (the main process; the others wait)."""
        tensors = {
            "model": dict(self.potential.state_dict()),
            "optimizer": optimizer_state(self.optimizer),
            "average": self.average.state() if self.average else {},
            "best": self.best,
            "clip": {"recent": self.clipper.recent},
            "sums": {"errors": self.step.sums, "totals": self.step.totals},
            "lowrank": self.optimizer.extra_state() if isinstance(self.optimizer, LowRank) else {},
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.world.size > 1:
            # The error sums of a row in the making are spread over the processes.
            tensors["sums"]["errors"] = self.world.add(self.step.sums.clone())
        if self.world.main:
            header = {
                "progress": vars(self.progress), "sampler": self.train.state_dict(), "info": self.potential.info,
            }  # fmt: skip
            folder = self.folder / "checkpoints"
            self._saved = checkpoint.write_checkpoint(
                folder, self.progress.step, header, tensors, self.config.keep_checkpoints
            )
        self.world.wait()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        header, tensors = checkpoint.read_checkpoint(path)
        self.potential.load_state_dict(tensors["model"])
        load_optimizer_state(self.optimizer, tensors["optimizer"])
        if isinstance(self.optimizer, LowRank):
            self.optimizer.load_extra_state(tensors.get("lowrank", {}))
        if self.average:
            self.average.load(tensors["average"])
        self.best = tensors.get("best", {})
        self.clipper.recent.copy_(tensors["clip"]["recent"])
        self.step.sums.copy_(tensors["sums"]["errors"] if self.world.main else torch.zeros_like(self.step.sums))
        self.step.totals.copy_(tensors["sums"]["totals"])
        torch.set_rng_state(tensors["random"]["cpu"])
        self.potential.info |= header.get("info", {})
        self.progress = Progress(**header["progress"])
        self.train.load_state_dict(header["sampler"])
        self._saved = path
        if self.best and self.world.main:
            self._rewrite_best()

    def _rewrite_best(self) -> None:
        """Put back the best model of the checkpoint: the interrupted run may have written a later one."""
        present = {name: tensor.clone() for name, tensor in self.potential.state_dict().items()}
        self.potential.load_state_dict(self.best)
        save_model(self.potential, self.folder / "best.dpa1")
        self.potential.load_state_dict(present)


def _errors(part: str, sums: Tensor) -> dict[str, float]:
    """Rows (4, 3) of ``Metrics.sums`` → ``train_energy_rmse``…, NaN where nothing was measured."""
    found = means(sums)
    return {f"{part}_{error}": found[error] for error in ERRORS}
