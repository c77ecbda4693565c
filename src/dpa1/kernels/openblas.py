"""Matrix products by the OpenBLAS that numpy brings, in the calling thread.

torch's own products come from a library whose kernels for AMD processors are slow for matrices of a hundred columns:
OpenBLAS takes a fifth to a third less time. Its own threads would be in the way of those that work on blocks of atoms, so
it is used only inside ``alone``, where it has none. Small products of numpy's belong there, too: waking threads for them
takes a hundred times as long where other programs are busy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 16  # multiplications of one matrix; below, the call costs more than it brings


class _State:
    lock = threading.Lock()
    inside = 0  # contexts entered and not left, in all threads
    limits: Any = None


@contextmanager
def alone() -> Iterator[None]:
    """Inside, numpy's products run on one thread, and the model's may be formed by them."""
    library = _library()
    if library is None:
        yield
        return
    with _State.lock:
        if _State.inside == 0:
            _State.limits = library.limit(limits=1)
        _State.inside += 1
    try:
        yield
    finally:
        with _State.lock:
            _State.inside -= 1
            if _State.inside == 0:
                _State.limits.restore_original_limits()


@cache
def _library() -> Any:
    """The OpenBLAS that numpy uses, or None."""
    from threadpoolctl import ThreadpoolController

    np.ones((2, 2)) @ np.ones((2, 2))  # whatever numpy uses is loaded now
    found = ThreadpoolController().select(internal_api="openblas")
    return found if any("numpy" in library.filepath for library in found.lib_controllers) else None


@cache
def _suits() -> bool:
    """An AMD processor, for which torch's own products are slow."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8") and _library() is not None
    except OSError:
        return False


def worthwhile(a: Tensor, b: Tensor) -> bool:
    """Whether a·b (…, i, j)·(…, j, k) is for this path: here, inside ``alone``, and large enough."""
    return (
        _State.inside > 0
        and _suits()
        and a.device.type == "cpu"
        and a.dtype == b.dtype
        and a.dtype in (torch.float32, torch.float64)
        and a.shape[-2] * a.shape[-1] * b.shape[-1] >= LEAST
    )


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a·b of matrices or of stacks of them; records no gradients."""
    out = a.new_empty(*a.shape[:-1], b.shape[-1]) if out is None else out
    np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.detach().numpy())
    return out


def supports(a: Tensor, b: Tensor) -> bool:
    """Stacks of matrices of which each product is worthwhile."""
    return a.dim() == 3 and worthwhile(a, b)


def run(a: Tensor, b: Tensor) -> Tensor:
    """``reference.batched``, differentiable to any order."""
    y: Tensor = _Batched.apply(a, b)
    return y


class _Batched(torch.autograd.Function):
    """a·b of stacks of matrices."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return multiply(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _Batched.apply(grads[0], b.transpose(1, 2)), _Batched.apply(a.transpose(1, 2), grads[0])
