"""The descriptor in one compiled loop per atom, written where it is to stand.

Fast sibling of ``reference.descriptor_product``. With a graph kept, derivatives are torch's:

    D = M M_<ᵀ      M̄ = D̄ M_<, and D̄ᵀ M is added to the first rows.
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
        channels = matrix.shape[1]
        appended_bar = out_bar[0][:, channels * axis :] if ctx.more else None
        if torch.is_grad_enabled():
            bar = out_bar[0][:, : channels * axis].unflatten(-1, (channels, axis))
            first = functional.pad(bar.transpose(1, 2) @ matrix, (0, 0, 0, channels - axis))
            return bar @ matrix[:, :axis] + first, None, appended_bar
        matrix_bar = matrix.new_empty(len(matrix), matrix.shape[2], channels)
        _turn_back(array(out_bar[0]), array(matrix.transpose(1, 2)), axis, memory(matrix_bar))
        return matrix_bar.transpose(1, 2), None, appended_bar


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
