"""Which sibling of a hot operation runs. A fast one is compared with the reference on first use; if it differs it says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dpa1.kernels import attention, reference

log = logging.getLogger("dpa1")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, gate: Tensor, null: Tensor
) -> Tensor:
    """The definition, for bounded scores and a null score of zero."""
    scores = query @ key.transpose(-1, -2)
    return reference.gated_attention(scores, value, weight, gate, null, 0.0, bounded=True)


def gated_attention(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, gate: Tensor, null: Tensor) -> Tensor:
    """Fused gated attention where it holds on this device and precision, else the reference; same arguments as both."""
    fast = attention_holds(query.dtype, query.device.type)
    return (attention.gated_attention if fast else reference_attention)(query, key, value, weight, gate, null)


@cache
def attention_holds(dtype: torch.dtype, device: str) -> bool:
    """Compare values, first and second derivatives of the fused attention with the reference on a tiny system."""
    error = attention_error(dtype, device)
    holds = error <= TOLERANCE.get(dtype, 0.0)
    if not holds:
        log.warning(
            "fused attention differs from the reference by %.1e in %s on %s: the slower reference runs instead",
            error, dtype, device,
        )  # fmt: skip
    return holds


def attention_error(dtype: torch.dtype, device: str) -> float:
    """Largest difference (relative to the largest value) over values, first and second derivatives."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5, 4), (3, 5, 4), (3, 5, 4), (3, 5), (3, 5, 5)]
    inputs = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    along = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    cotangent = torch.rand(shapes[2], generator=generator, dtype=torch.float64)

    def derivatives(operation: Callable[..., Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            x = [tensor.to(device, dtype).requires_grad_() for tensor in inputs]
            y_bar = cotangent.to(device, dtype).requires_grad_()
            y = operation(*x, torch.ones(3, dtype=dtype, device=device))
            first = torch.autograd.grad(y, x, y_bar, create_graph=True)
            phi = sum(((a.to(device, dtype) * b).sum() for a, b in zip(along, first, strict=True)), torch.zeros(()))
            return [y.detach(), *(f.detach() for f in first), *torch.autograd.grad(phi, [y_bar, *x])]

    pairs = zip(derivatives(attention.gated_attention), derivatives(reference_attention), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
