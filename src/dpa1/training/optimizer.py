"""Adam or AdamW, gradient clipping, and their state as plain tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpa1.config.training import OptimizerConfig, TrainingConfig


def make_optimizer(parameters: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer, as one fused kernel per step."""
    decay = config.weight_decay
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    if decay is None:
        decay = 1e-3 if config.kind == "adamw" else 0.0
    return kind(parameters, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what ``optimizer_state`` gave."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


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
