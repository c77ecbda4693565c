"""The learning rate at every step: warm-up, then an exponential, cosine, stable-then-decaying or constant schedule."""

from __future__ import annotations

import math

from dpa1.config.training import TrainingConfig
from dpa1.errors import UserError


class Schedule:
    """``schedule(t)`` is the learning rate of step t = 0, 1, … of ``steps``; a pure function, so it needs no state."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config.schedule
        self.start = config.learning_rate
        self.steps = config.steps
        warmup = self.config.warmup_steps
        self.warmup = min(1000, config.steps // 50) if warmup is None else warmup
        if self.warmup >= self.steps:
            raise UserError(
                f"'training.schedule.warmup_steps': {self.warmup} does not leave a step of the {self.steps}; shorten it"
            )
        self.stop = self.start * self.config.stop_ratio if self.config.stop is None else self.config.stop
        if self.stop > self.start:
            raise UserError(
                f"'training.schedule.stop': {self.stop} is larger than learning_rate {self.start}; make it smaller"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            low = self.config.warmup_start
            return self.start * (low + (1.0 - low) * step / self.warmup)
        return getattr(self, f"_{self.config.kind}")(step - self.warmup, self.steps - self.warmup)

    @property
    def constant_until(self) -> int:
        """The step up to which the learning rate, after its warm-up, does not depend on how long the run is."""
        if self.config.kind == "constant":
            return self.steps
        return self.steps - self._decay(self.steps - self.warmup) if self.config.kind == "wsd" else 0

    def ramp(self, step: int, follow_warmup: bool) -> float:
        """Learning rate over its maximum, which moves the loss prefactors; 1 in the warm-up unless they follow it."""
        return 1.0 if step < self.warmup and not follow_warmup else self(step) / self.start

    def _constant(self, t: int, total: int) -> float:
        return self.start

    def _exponential(self, t: int, total: int) -> float:
        every = self.config.decay_steps
        if every is None:
            return self.start * (self.stop / self.start) ** (t / total)
        rate = self.config.decay_rate or math.exp(math.log(max(self.stop, 1e-10) / self.start) / (total / every))
        drops = t / every if self.config.smooth else t // every
        return max(self.stop, self.start * rate**drops)

    def _cosine(self, t: int, total: int) -> float:
        return self.stop + 0.5 * (self.start - self.stop) * (1.0 + math.cos(math.pi * t / total))

    def _decay(self, total: int) -> int:
        return min(total, max(1, int(self.config.decay_fraction * self.steps)))

    def _wsd(self, t: int, total: int) -> float:
        decay = self._decay(total)
        done = (t - (total - decay)) / decay
        if done <= 0:
            return self.start
        if self.config.decay_form == "inverse_linear":
            return 1.0 / (done / self.stop + (1.0 - done) / self.start)
        if self.config.decay_form == "linear":
            return self.start + (self.stop - self.start) * done
        return self.stop + 0.5 * (self.start - self.stop) * (1.0 + math.cos(math.pi * done))
