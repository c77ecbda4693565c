"""What ``dpa1 evaluate --output`` keeps: a row per frame, points for the parity plots, and all numbers as JSON."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np
import torch

from dpa1.frames import Frame
from dpa1.units import EV_PER_A3

if TYPE_CHECKING:
    from torch import Tensor

    from dpa1.model.potential import Potential

POINTS = 20_000  # kept per parity plot; beyond it the points are thinned evenly

COLUMNS = (
    "source", "frame", "n_atoms", "energy_eV", "predicted_energy_eV", "energy_error_meV_per_atom",
    "force_rmse_meV_per_A", "force_mae_meV_per_A", "virial_rmse_meV_per_atom", "stress_rmse_GPa",
)  # fmt: skip


class Points:
    """An even sample of a long stream of (reference, predicted) pairs."""

    def __init__(self, most: int = POINTS) -> None:
        self.most, self.step, self.offset = most, 1, 0
        self.parts: list[np.ndarray] = []
        self.count = 0

    def add(self, reference: np.ndarray, predicted: np.ndarray) -> None:
        """(n,) and (n,); pairs without a reference (NaN) are skipped."""
        known = ~np.isnan(reference)
        pairs = np.stack([reference[known], predicted[known]])
        part = pairs[:, self.offset :: self.step]
        self.offset = (self.offset - pairs.shape[1]) % self.step
        self.parts.append(part)
        self.count += part.shape[1]
        while self.count > self.most:
            # Every second point of the whole stream: the next one to keep follows from where this thinning ended.
            whole = np.concatenate(self.parts, axis=1)
            if whole.shape[1] % 2:
                self.offset += self.step
            self.parts, self.step = [whole[:, ::2]], 2 * self.step
            self.count = self.parts[0].shape[1]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(reference, predicted)."""
        reference, predicted = np.concatenate([np.zeros((2, 0)), *self.parts], axis=1)
        return reference, predicted


class Recorder:
    """Give its ``observe`` to ``evaluate``, and its ``level``; rows go to ``file`` as they come."""

    def __init__(self, potential: Potential, file: TextIO, level: str | None = None) -> None:
        self.points = {"energy": Points(), "force": Points(), "virial": Points()}
        self._levels, self._level = potential.levels, level
        self._bias = np.zeros((len(potential.levels), 119))
        self._bias[:, _numbers(potential)] = potential.energy_bias.cpu().numpy()
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def observe(self, frames: Sequence[Frame], prediction: dict[str, Tensor], terms: Tensor) -> None:
        """One batch: frames, prediction and the error terms (F, 4, 3) that ``Metrics.update`` returned."""
        energy, forces, virial = (prediction[key].detach().cpu().numpy() for key in ("energy", "forces", "virial"))
        count = terms[..., 0].cpu()
        nan = torch.full_like(count, float("nan"))
        rmse = torch.where(count > 0, (terms[..., 2].cpu() / count.clamp(min=1)).sqrt(), nan).numpy()
        mae = torch.where(count > 0, terms[..., 1].cpu() / count.clamp(min=1), nan).numpy()
        start = 0
        for k, frame in enumerate(frames):
            n = len(frame)
            level = self._level or frame.level
            bias = self._bias[self._levels.index(level) if level in self._levels else 0, frame.numbers].sum()
            if frame.energy is not None:
                self.points["energy"].add(np.array([frame.energy - bias]) / n, np.array([energy[k] - bias]) / n)
            if frame.forces is not None:
                self.points["force"].add(frame.forces.ravel(), forces[start : start + n].ravel())
            if frame.virial is not None:
                self.points["virial"].add(frame.virial.ravel() / n, virial[k].ravel() / n)
            error = None if frame.energy is None else 1e3 * (energy[k] - frame.energy) / n
            numbers = (
                frame.energy, energy[k], error, 1e3 * rmse[k, 1], 1e3 * mae[k, 1], 1e3 * rmse[k, 2], EV_PER_A3 * rmse[k, 3]
            )  # fmt: skip
            self._writer.writerow([frame.source, frame.index, n, *(_cell(x) for x in numbers)])
            start += n


def _numbers(potential: Potential) -> list[int]:
    from ase.data import atomic_numbers

    return [atomic_numbers[symbol] for symbol in potential.elements]


def _cell(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.10g}"
