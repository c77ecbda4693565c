"""Gradients that can be differentiated again: where hand-derived derivatives end, autograd forms them from plain operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.reference import Keys


def fresh(inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """New nodes of the graph for them: a gradient stops there instead of running on to where the inputs came from."""
    return [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]


def plain_attention(
    weight: Tensor, gate: Tensor, factor: Tensor | None, null_count: Tensor, null_score: float
) -> tuple[Callable[..., Tensor], Keys]:
    """The reference's attention with given weights of keys (N, K), gates and factors of scores (N, K, K); and the keys."""

    def attention(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> Tensor:
        scores = query @ key.transpose(-1, -2)
        if factor is not None:
            scores = (scores - null_score) * factor + null_score
        return reference.attend(scores, value, weight, gate, null_count, null_score, bounded)

    return attention, Keys(weight, weight, None, None, null_count, null_score)


def gradients(
    outputs: Tensor | Sequence[Tensor], cotangents: Tensor | Sequence[Tensor], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Differentiable gradients by each of the inputs; None for one that needs none or is not used."""
    asked = [k for k, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if wanted:
        grads = torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, allow_unused=True)
        for k, grad in zip(asked, grads, strict=True):
            found[k] = grad
    return found
