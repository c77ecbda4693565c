"""An exponential moving average of the weights, as a second set of parameters that can be swapped in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """average ← d·average + (1 − d)·weights after each step, with d = min(decay, (1 + t)/(10 + t)) early on."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (0, 1, …)."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self.values, self.parameters, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averaged ones."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {str(k): v for k, v in enumerate(self.values)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` gave."""
        for k, value in enumerate(self.values):
            value.copy_(state[str(k)])
