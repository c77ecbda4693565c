"""Errors of predictions against labels, summed batch by batch: training validation and ``dpa1 evaluate`` share this.

=========  ==========================================================================  ========
quantity   one term of the mean                                                        unit
=========  ==========================================================================  ========
energy     energy difference of a frame divided by its number of atoms                 eV/atom
force      one Cartesian component of one atom                                         eV/Å
virial     one of nine components of a frame, divided by its number of atoms           eV/atom
stress     one of nine components of a frame, divided by its cell volume               eV/Å³
=========  ==========================================================================  ========

A label that is missing (NaN in the batch) contributes nothing, so partial labels need no special care.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from dpa1.batch import Batch

QUANTITIES = ("energy", "force", "virial", "stress")
MEANS = tuple(f"{quantity}_{kind}" for quantity in QUANTITIES for kind in ("rmse", "mae"))  # keys of ``means``
_SIZE = len(QUANTITIES)  # row of (frames, atoms, –)
_ELEMENTS = _SIZE + 1  # first of 119 rows of force errors per atomic number


class Metrics:
    """Streaming RMSE and MAE.

    ``sums`` (124, 3) float64 holds everything additive: (number of terms, Σ|d|, Σd²) per quantity, the numbers of
    frames and atoms, and the force errors of each element. Several processes combine by adding it
    (``all_reduce(metrics.sums)``).

    Parameters
    ----------
    worst: how many of the worst frames to remember per quantity (0: none, as in training).
    """

    def __init__(self, worst: int = 0) -> None:
        self.sums = torch.zeros(_ELEMENTS + len(chemical_symbols), 3, dtype=torch.float64)
        self.sources: dict[str, Tensor] = {}
        self.levels: dict[str, Tensor] = {}
        self.n_worst = worst
        self.worst: dict[str, list[tuple[float, str]]] = {quantity: [] for quantity in QUANTITIES[:3]}

    def update(
        self,
        batch: Batch,
        prediction: dict[str, Tensor],
        sources: Sequence[str] | None = None,
        levels: Sequence[str] | None = None,
    ) -> Tensor:
        """Add one batch; ``prediction`` as from ``Potential.predict``, any of energy, forces, virial may be absent.

        ``sources`` and ``levels`` name the data set and the level of theory of each frame, for errors of each of them.
        Returns the terms of each frame (F, 4, 3).
        """
        frames = frame_sums(batch, prediction)
        self.sums = self.sums.to(frames.device)
        self.sums[:_SIZE] += frames.sum(0)
        self.sums[_SIZE] += frames.new_tensor([len(batch), len(batch.numbers), 0.0])
        if "forces" in prediction:
            self.sums[_ELEMENTS:].index_add_(0, batch.numbers, _terms(prediction["forces"], batch.forces).sum(1))
        if sources is not None or levels is not None or self.n_worst:
            local = frames.cpu()
            for names, sums in ((sources, self.sources), (levels, self.levels)):
                for name in dict.fromkeys(names or ()):
                    chosen = torch.tensor([other == name for other in names or ()])
                    _add(sums, name, local[chosen].sum(0))
            self._add_worst(batch, local)
        return frames

    def result(self) -> dict[str, Any]:
        """``<quantity>_rmse`` and ``_mae`` in the units above (NaN where no frame has the label), and further

        n_frames, n_atoms; ``per_element``: symbol → force errors and n_atoms; ``per_source``, ``per_level``: name → all errors;
        ``worst``: quantity → [{frame, error}], the largest first (only where asked for).
        """
        sums = self.sums.cpu()
        result: dict[str, Any] = means(sums[:_SIZE])
        result["n_frames"], result["n_atoms"] = int(sums[_SIZE, 0]), int(sums[_SIZE, 1])
        result["per_element"] = {
            chemical_symbols[z]: {**_mean("force", row), "n_atoms": int(row[0]) // 3}
            for z, row in enumerate(sums[_ELEMENTS:])
            if row[0] > 0
        }
        result["per_source"] = {name: means(rows) for name, rows in self.sources.items()}
        result["per_level"] = {name: means(rows) for name, rows in self.levels.items()}
        result["worst"] = {
            quantity: [{"frame": name, "error": error} for error, name in entries]
            for quantity, entries in self.worst.items()
            if entries
        }
        return result

    def _add_worst(self, batch: Batch, frames: Tensor) -> None:
        if self.n_worst:
            for index, quantity in enumerate(self.worst):
                count, square = frames[:, index, 0], frames[:, index, 2]
                errors = (square / count.clamp(min=1)).sqrt().tolist()
                labelled = (count > 0).tolist()
                self._keep_worst(
                    quantity, [(e, name) for e, name, has in zip(errors, batch.names, labelled, strict=True) if has]
                )

    def _keep_worst(self, quantity: str, entries: list[tuple[float, str]]) -> None:
        self.worst[quantity] = sorted([*self.worst[quantity], *entries], reverse=True)[: self.n_worst]


def _add(parts: dict[str, Tensor], name: str, sums: Tensor) -> None:
    parts[name] = parts.get(name, torch.zeros_like(sums)) + sums


def frame_sums(batch: Batch, prediction: dict[str, Tensor]) -> Tensor:
    """(F, 4, 3) float64: number of terms, Σ|d| and Σd² of each quantity of each frame; zeros where not labelled."""
    n_atoms = batch.n_atoms.double()
    sums = torch.zeros(len(batch), len(QUANTITIES), 3, dtype=torch.float64, device=n_atoms.device)
    if "energy" in prediction:
        sums[:, 0] = _terms(prediction["energy"] / n_atoms, batch.energy / n_atoms)
    if "forces" in prediction:
        per_atom = _terms(prediction["forces"], batch.forces).sum(1)
        sums[:, 1] = torch.zeros_like(sums[:, 1]).index_add(0, batch.frame, per_atom)
    if "virial" in prediction:
        volume = torch.linalg.det(batch.cell).abs()
        volume = torch.where(volume > 0, volume, torch.nan)
        for row, divisor in ((2, n_atoms[:, None, None]), (3, volume[:, None, None])):
            sums[:, row] = _terms(prediction["virial"] / divisor, batch.virial / divisor).sum((1, 2))
    return sums


def _terms(predicted: Tensor, label: Tensor) -> Tensor:
    """(…) and (…) → (…, 3): 1, |d|, d²; zeros where there is no label, NaN where a prediction is not finite."""
    known = ~label.isnan()
    error = torch.where(known, predicted.detach().double() - label, 0.0)
    return torch.stack([known.double(), error.abs(), error**2], dim=-1)


def _mean(quantity: str, row: Tensor) -> dict[str, float]:
    count, absolute, square = row.tolist()
    if count == 0:
        return {f"{quantity}_rmse": float("nan"), f"{quantity}_mae": float("nan")}
    return {f"{quantity}_rmse": (square / count) ** 0.5, f"{quantity}_mae": absolute / count}


def means(rows: Tensor) -> dict[str, float]:
    """(4, 3) sums → ``energy_rmse`` …, NaN where nothing is labelled."""
    return {
        key: value
        for quantity, row in zip(QUANTITIES, rows, strict=True)
        for key, value in _mean(quantity, row).items()
    }
