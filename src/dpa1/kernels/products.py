"""Matrix products through oneDNN (float32) or numpy's OpenBLAS where they are there and faster, else as torch forms them.

torch's own products come from a library that leaves the wide registers of AMD processors unused; oneDNN's in float32 run
2–2.5 times as fast there, and OpenBLAS's a quarter faster. All compute in the full precision of their factors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import dispatch, openblas
from dpa1.kernels.wanted import parameters_wanted

LEAST = 1 << 16  # multiplications; below, the call costs more than it brings


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·w (+ bias): x (n, a), w (a, b), either of which may be a transposed view; records no gradients."""
    if supports(x, w, bias) and dispatch.holds(dispatch.PRODUCTS, x.dtype, "cpu"):
        return _fast(x, w, bias)
    return torch.mm(x, w) if bias is None else torch.addmm(bias, x, w)


def batched(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a·b of stacks of matrices (n, i, j), (n, j, k), into ``out`` where it is given; records no gradients."""
    if openblas.worthwhile(a, b) and dispatch.holds(dispatch.BATCHED, a.dtype, "cpu"):
        return openblas.multiply(a, b, out)
    if out is None:
        return torch.bmm(a, b)
    return out.baddbmm_(a, b, beta=0)


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Matrices on a CPU, large enough, of a precision for which there is something faster than torch."""
    return x.dim() == 2 and weight.dtype == x.dtype and (_worthwhile(x, weight) or openblas.worthwhile(x, weight))


def _fast(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    if _worthwhile(x, w):
        return _onednn(x, w, bias)
    if not openblas.worthwhile(x, w):
        return torch.mm(x, w) if bias is None else torch.addmm(bias, x, w)
    y = openblas.multiply(x, w)
    return y if bias is None else y.add_(bias)


def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``reference.linear``, differentiable to any order."""
    y: Tensor = _Product.apply(x, weight, True)
    return y if bias is None else y + bias


def _worthwhile(x: Tensor, w: Tensor) -> bool:
    return x.dtype == torch.float32 and not x.is_cuda and x.numel() * w.shape[1] >= LEAST and _available()


@cache
def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, inner = x.shape
    if x.stride(0) == 1 and inner > 1:  # xᵀ: the sum over rows that forms a weight's gradient
        if _bucket(inner) > inner:
            x, w = _lengthened(x.t(), _bucket(inner)).t(), _lengthened(w, _bucket(inner))
    elif _bucket(rows) > rows:
        x = _lengthened(x, _bucket(rows))
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, w.t(), bias, "none", [], "")
    return y[:rows]


def padding(x: Tensor) -> int:
    """How many rows of zeros spare products of all rows of x, or of twice as many, a copy that lengthens them."""
    fast = x.dtype == torch.float32 and not x.is_cuda and len(x) * 16 >= LEAST and _available()
    return _bucket(len(x)) - len(x) if fast else 0


def _bucket(n: int) -> int:
    """The next of eight sizes per octave: oneDNN compiles each new shape, which takes longer than ten products."""
    step = 1 << max(3, n.bit_length() - 4)
    return -(-n // step) * step


def _lengthened(x: Tensor, rows: int) -> Tensor:
    """x with rows of zeros at its end."""
    y = x.new_empty(rows, x.shape[1])
    y[: len(x)] = x
    y[len(x) :].zero_()
    return y


class _Product(torch.autograd.Function):
    """x·w. ``forward_pass``: w is a weight, whose gradient a force does not need; in a derivative both matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, forward_pass: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.forward_pass = forward_pass
        return _fast(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        (y_bar,) = grads
        x_bar = _Product.apply(y_bar, w.t(), False) if ctx.needs_input_grad[0] else None
        weights = ctx.needs_input_grad[1] and (parameters_wanted() or not ctx.forward_pass)
        w_bar = _Product.apply(x.t(), y_bar, False) if weights else None
        return x_bar, w_bar, None
