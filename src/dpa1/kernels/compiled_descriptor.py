"""The descriptor in one compiled loop per atom, written where it is to stand.

Fast sibling of ``reference.descriptor_product``, with A for the direction of M̄ in the second derivative:

    D = M M_<ᵀ      M̄ = D̄ M_<, and D̄ᵀ M is added to the first rows      ∂Φ/∂D̄ = A M_<ᵀ + M A_<ᵀ, ∂Φ/∂M as M̄ with A for M.

Third derivatives are torch's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dpa1.compiled import available, loops
from dpa1.kernels.arrays import array, memory


def supports(matrix: Tensor, axis: int, appended: Tensor | None) -> bool:
    """Everything."""
    return available()


def run(matrix: Tensor, axis: int, appended: Tensor | None) -> Tensor:
    """``reference.descriptor_product``, differentiable to any order."""
    out: Tensor = _Descriptor.apply(matrix, axis, appended)
    return out


class _Descriptor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, axis: int, appended: Tensor | None) -> Tensor:
        atoms, channels = matrix.shape[:2]
        more = 0 if appended is None else appended.shape[1]
        out = matrix.new_empty(atoms, channels * axis + more)
        _multiply(array(matrix.transpose(1, 2)), axis, memory(out))
        if appended is not None:
            out[:, channels * axis :] = appended
        ctx.axis, ctx.more = axis, more
        ctx.save_for_backward(matrix)
        return out

    @staticmethod
    def backward(ctx: Any, *out_bar: Tensor) -> tuple[Tensor | None, ...]:
        (matrix,), axis = ctx.saved_tensors, ctx.axis
        appended_bar = out_bar[0][:, matrix.shape[1] * axis :] if ctx.more else None
        return _Back.apply(out_bar[0], matrix, axis), None, appended_bar


class _Back(torch.autograd.Function):
    """M̄ (N, C, 4) from D̄ (N, D), of which the first C·axis columns count, and M."""

    @staticmethod
    def forward(ctx: Any, out_bar: Tensor, matrix: Tensor, axis: int) -> Tensor:
        ctx.axis = axis
        ctx.save_for_backward(out_bar, matrix)
        return _turned_back(out_bar, matrix, axis)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        (out_bar, matrix), (a,), axis = ctx.saved_tensors, along, ctx.axis
        size = matrix.shape[1] * axis
        if torch.is_grad_enabled():
            first = a @ matrix[:, :axis].transpose(1, 2) + matrix @ a[:, :axis].transpose(1, 2)
            return functional.pad(first.flatten(1), (0, out_bar.shape[1] - size)), _Back.apply(out_bar, a, axis), None
        out2 = out_bar.new_empty(out_bar.shape)
        out2[:, size:] = 0
        _multiply_twice(array(a.transpose(1, 2)), array(matrix.transpose(1, 2)), axis, memory(out2))
        return out2, _turned_back(out_bar, a, axis), None


def _turned_back(out_bar: Tensor, matrix: Tensor, axis: int) -> Tensor:
    found = matrix.new_empty(len(matrix), matrix.shape[2], matrix.shape[1])
    _turn_back(array(out_bar), array(matrix.transpose(1, 2)), axis, memory(found))
    return found.transpose(1, 2)


@loops
def _multiply(matrix: np.ndarray, axis: int, out: np.ndarray) -> None:
    """The first numbers of each row of ``out`` (N, D) from matrix (N, 4, C)."""
    atoms, _, channels = matrix.shape
    for a in range(atoms):
        p0, p1, p2, p3 = matrix[a, 0], matrix[a, 1], matrix[a, 2], matrix[a, 3]
        for c in range(channels):
            row, q0, q1, q2, q3 = out[a, c * axis : (c + 1) * axis], p0[c], p1[c], p2[c], p3[c]
            for x in range(axis):
                row[x] = q0 * p0[x] + q1 * p1[x] + q2 * p2[x] + q3 * p3[x]


@loops
def _multiply_twice(along: np.ndarray, matrix: np.ndarray, axis: int, out: np.ndarray) -> None:
    """The same of along M_<ᵀ + M along_<ᵀ, both (N, 4, C)."""
    atoms, _, channels = matrix.shape
    for n in range(atoms):
        p0, p1, p2, p3 = matrix[n, 0], matrix[n, 1], matrix[n, 2], matrix[n, 3]
        a0, a1, a2, a3 = along[n, 0], along[n, 1], along[n, 2], along[n, 3]
        for c in range(channels):
            row, q0, q1, q2, q3 = out[n, c * axis : (c + 1) * axis], p0[c], p1[c], p2[c], p3[c]
            b0, b1, b2, b3 = a0[c], a1[c], a2[c], a3[c]
            for x in range(axis):
                one = b0 * p0[x] + b1 * p1[x] + b2 * p2[x] + b3 * p3[x]
                row[x] = one + q0 * a0[x] + q1 * a1[x] + q2 * a2[x] + q3 * a3[x]


@loops
def _turn_back(out_bar: np.ndarray, matrix: np.ndarray, axis: int, matrix_bar: np.ndarray) -> None:
    """matrix_bar (N, 4, C)."""
    atoms, _, channels = matrix.shape
    more = np.empty((4, axis), matrix.dtype)
    m0, m1, m2, m3 = more[0], more[1], more[2], more[3]
    for a in range(atoms):
        p0, p1, p2, p3 = matrix[a, 0], matrix[a, 1], matrix[a, 2], matrix[a, 3]
        more[:] = 0
        for c in range(channels):
            bar, q0, q1, q2, q3 = out_bar[a, c * axis : (c + 1) * axis], p0[c], p1[c], p2[c], p3[c]
            zero = matrix.dtype.type(0)
            y0, y1, y2, y3 = zero, zero, zero, zero
            for x in range(axis):
                y0 += bar[x] * p0[x]
                y1 += bar[x] * p1[x]
                y2 += bar[x] * p2[x]
                y3 += bar[x] * p3[x]
                m0[x] += bar[x] * q0
                m1[x] += bar[x] * q1
                m2[x] += bar[x] * q2
                m3[x] += bar[x] * q3
            matrix_bar[a, 0, c] = y0
            matrix_bar[a, 1, c] = y1
            matrix_bar[a, 2, c] = y2
            matrix_bar[a, 3, c] = y3
        for k in range(4):
            for x in range(axis):
                matrix_bar[a, k, x] += more[k, x]
