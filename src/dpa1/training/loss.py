"""The training loss: energy, force and virial errors with prefactors that move from start to end.

With N atoms in a frame and ΔE, ΔF, ΔW the differences between prediction and label, one frame contributes

=======  ====================  =====================  =============================
term     mse                   mae                    huber
=======  ====================  =====================  =============================
energy   ΔE²/N                 \\|ΔE\\|/N               H(ΔE/N)
force    mean of ΔF²           mean of \\|ΔF\\|         mean of H(ΔF)
virial   mean of ΔW²/N         mean of \\|ΔW\\|/N       mean of H(ΔW/N)
=======  ====================  =====================  =============================

(means over the 3N or 9 components; H(x) = x²/2 up to δ, then δ(\\|x\\| − δ/2)). Each term is multiplied by
``end + (start − end)·learning rate/largest learning rate`` and by the weight of the frame; the loss is the mean over
frames. A frame without a label adds nothing to that term, so a labelled frame counts the same whatever its company.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.config.training import LossConfig

LABELS = {"energy": "energy", "force": "forces", "virial": "virial"}


class Loss:
    """``loss(batch, prediction, ramp)`` → (F,) float64, the weighted loss of each frame."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.forces, self.virial = "force" in config.terms, "virial" in config.terms  # what ``predict`` must derive
        self.delta = dict(zip(("energy", "force", "virial"), config.huber_delta, strict=True))

    def prefactor(self, term: str, ramp: float) -> float:
        """Weight of a term when the learning rate is ``ramp`` times its largest value."""
        start, end = getattr(self.config, term)
        return float(end + (start - end) * ramp)

    def __call__(self, batch: Batch, prediction: dict[str, Tensor], ramp: float) -> Tensor:
        total = torch.zeros_like(batch.energy)
        for term in self.config.terms:
            prefactor = self.prefactor(term, ramp)
            if prefactor:
                label = LABELS[term]
                errors = getattr(self, f"_{term}")(batch, prediction[label], getattr(batch, label))
                total = total + prefactor * errors
        return total * batch.weight

    def _energy(self, batch: Batch, predicted: Tensor, label: Tensor) -> Tensor:
        return self._extensive("energy", predicted, label, batch.n_atoms)

    def _virial(self, batch: Batch, predicted: Tensor, label: Tensor) -> Tensor:
        return self._extensive("virial", predicted, label, batch.n_atoms[:, None, None]).mean((1, 2))

    def _extensive(self, term: str, predicted: Tensor, label: Tensor, n_atoms: Tensor) -> Tensor:
        error = difference(predicted, label, _labelled(label))
        if self.config.kind == "mse":
            return error**2 / (n_atoms**2 if self.config.intensive else n_atoms)
        return self._pointwise(term, error / n_atoms)

    def _force(self, batch: Batch, predicted: Tensor, label: Tensor) -> Tensor:
        frames = len(batch)
        missing = torch.zeros(frames, dtype=torch.int64, device=label.device).index_add(
            0, batch.frame, label.isnan().any(-1).long()
        )
        labelled = (missing < batch.n_atoms)[batch.frame].unsqueeze(-1)
        error = difference(predicted, label, labelled)
        if self.config.force_norm:
            # The length of a zero vector has no gradient: leave it out of the graph.
            square = (error**2).sum(-1)
            zero = square == 0.0
            error = torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt()).unsqueeze(-1)
        terms = error**2 if self.config.kind == "mse" else self._pointwise("force", error)
        per_atom = terms.mean(-1)
        return per_atom.new_zeros(frames).index_add(0, batch.frame, per_atom) / batch.n_atoms

    def _pointwise(self, term: str, error: Tensor) -> Tensor:
        if self.config.kind == "mae":
            return error.abs()
        delta = self.delta[term]
        size = error.abs()
        return torch.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def _labelled(label: Tensor) -> Tensor:
    """Which frames have the label: one NaN among others is a broken label, not a missing one."""
    if label.dim() == 1:
        return ~label.isnan()
    return ~label.isnan().flatten(1).all(1).reshape(-1, *(1,) * (label.dim() - 1))


def difference(predicted: Tensor, label: Tensor, labelled: Tensor) -> Tensor:
    """``predicted − label`` where labelled and 0 elsewhere; a missing label (NaN) reaches neither value nor gradient."""
    return torch.where(labelled, predicted - torch.where(labelled, label, 0.0), 0.0)
