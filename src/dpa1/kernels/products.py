"""Matrix products by OpenBLAS where it is faster (``openblas``), else as torch forms them; both in the full precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import dispatch, openblas
from dpa1.kernels.wanted import parameters_wanted


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·w (+ bias): x (n, a), w (a, b), either of which may be a transposed view; records no gradients."""
    if supports(x, w, bias) and dispatch.holds(dispatch.PRODUCTS, x.dtype, "cpu"):
        return openblas.multiply(x, w, bias=bias)
    return torch.mm(x, w) if bias is None else torch.addmm(bias, x, w)


def batched(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a·b of stacks of matrices (n, i, j), (n, j, k), into ``out`` where it is given; records no gradients."""
    if openblas.worthwhile(a, b) and dispatch.holds(dispatch.BATCHED, a.dtype, "cpu"):
        return openblas.multiply(a, b, out)
    if out is None:
        return torch.bmm(a, b)
    return out.baddbmm_(a, b, beta=0)


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Matrices for which there is something faster than torch."""
    return x.dim() == 2 and openblas.worthwhile(x, weight)


def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``reference.linear``, differentiable to any order."""
    y: Tensor = _Product.apply(x, weight, True)
    return y if bias is None else y + bias


class _Product(torch.autograd.Function):
    """x·w. ``forward_pass``: w is a weight, whose gradient a force does not need; in a derivative both matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, forward_pass: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.forward_pass = forward_pass
        return openblas.multiply(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        (y_bar,) = grads
        x_bar = _Product.apply(y_bar, w.t(), False) if ctx.needs_input_grad[0] else None
        weights = ctx.needs_input_grad[1] and (parameters_wanted() or not ctx.forward_pass)
        w_bar = _Product.apply(x.t(), y_bar, False) if weights else None
        return x_bar, w_bar, None
