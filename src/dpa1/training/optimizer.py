"""Adam, AdamW or Muon, gradient clipping, and their state as plain tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpa1.config.training import OptimizerConfig, TrainingConfig
from dpa1.training.muon import MatrixMuon

SMALLEST_MATRIX = 4  # rows or columns below which orthogonalising a matrix has no meaning left


class Muon:
    """Orthogonalised momentum for weight matrices (``training/muon.py``), Adam for everything else.

    The step of a matrix has the root mean square that Adam's would have, so one learning rate serves both. Weight decay
    acts on the matrices: their steps do not shrink with the gradient, so in long runs they grow without it. It acts on
    ``biases``, too, which belong to the matrices: a tanh step lies at −b/w, so were w alone to shrink, the step would leave the
    range of its input for good.
    """

    def __init__(self, parameters: Sequence[Tensor], config: OptimizerConfig, biases: Sequence[Tensor] = ()) -> None:
        matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) >= SMALLEST_MATRIX]
        others = [p for p in parameters if p.ndim != 2 or min(p.shape) < SMALLEST_MATRIX]
        decay = config.weight_decay or 0.0
        self._parts: list[torch.optim.Optimizer] = [MatrixMuon(matrices, decay)] if matrices else []
        if others:
            shrinking = {id(p) for p in biases} if decay else set()
            groups = [
                {"params": [p for p in others if (id(p) in shrinking) is shrinks], "weight_decay": decay * shrinks}
                for shrinks in (False, True)
            ]
            self._parts.append(
                torch.optim.AdamW(
                    [group for group in groups if group["params"]],
                    lr=0.0,
                    betas=config.betas,
                    eps=config.epsilon,
                    fused=True,
                )
            )

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """``MatrixMuon`` for matrices, AdamW for the rest; either may be missing."""
        return self._parts

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Change the parameters."""
        for part in self.parts:
            part.step()


class Composed(Protocol):
    """Several of torch's optimizers, or something around them, that acts as one."""

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """The optimizers inside."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> None:
        """Change the parameters."""


Optimizer = torch.optim.Optimizer | Composed


def make_optimizer(parameters: Sequence[Tensor], config: OptimizerConfig, biases: Sequence[Tensor] = ()) -> Optimizer:
    """The optimizer the configuration names; ``biases``: those of the parameters that Muon lets shrink with the matrices."""
    if config.kind == "muon":
        return Muon(parameters, config, biases)
    decay = config.weight_decay
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    if decay is None:
        decay = 1e-3 if config.kind == "adamw" else 0.0
    return kind(parameters, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=decay, fused=True)


def _parts(optimizer: Optimizer) -> list[torch.optim.Optimizer]:
    return [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer.parts


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use ``rate`` for the next step."""
    for part in _parts(optimizer):
        for group in part.param_groups:
            group["lr"] = rate


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by part and parameter number."""
    return {
        f"{part}.{number}.{name}": value
        for part, member in enumerate(_parts(optimizer))
        for number, entry in member.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what ``optimizer_state`` gave."""
    parts = _parts(optimizer)
    entries: list[dict[int, dict[str, Tensor]]] = [{} for _ in parts]
    for key, value in tensors.items():
        part, number, name = key.split(".")
        entries[int(part)].setdefault(int(number), {})[name] = value
    for member, state in zip(parts, entries, strict=True):
        member.load_state_dict({"state": state, "param_groups": member.state_dict()["param_groups"]})


class Clipper:
    """Shortens a gradient that is longer than ``clip_norm`` or than ``clip_factor`` × the recent average length.

    The average follows the shortened lengths with a memory of fifty steps and is part of the checkpoint, and it is
    relative because the loss prefactors make gradients shrink a thousandfold over a run.
    """

    MEMORY = 0.98

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.factor, self.norm = config.clip_factor, config.clip_norm
        self.recent = torch.zeros(2, dtype=torch.float64, device=device)  # decayed sum of lengths, of weights

    @torch.no_grad()
    def __call__(self, gradients: list[Tensor], length: Tensor) -> None:
        """Scale ``gradients``, whose global length is ``length``, in place."""
        limit = torch.full_like(self.recent[0], float("inf") if self.norm is None else self.norm)
        if self.factor is not None:
            mean = self.recent[0] / self.recent[1]
            limit = torch.where(self.recent[1] > 0, torch.minimum(limit, self.factor * mean), limit)
        length = length.double()
        kept = torch.minimum(length, limit)
        self.recent.mul_(self.MEMORY).add_(torch.stack([kept, torch.ones_like(kept)]), alpha=1.0 - self.MEMORY)
        if self.factor is not None or self.norm is not None:
            scale = torch.where(length > limit, limit / length, 1.0)
            torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))


def gradient_length(gradients: list[Tensor]) -> Tensor:
    """Global Euclidean length of a list of gradients."""
    return torch.linalg.vector_norm(torch.stack([n.double() for n in torch._foreach_norm(gradients)]))
