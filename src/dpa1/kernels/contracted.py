"""Contraction of pair features that depend on one number of each pair, with what a force asks of it formed at once.

With G' = dG/ds at hand, the cotangent of s is

    s̄_j = Σ_c Ḡ_jc G'_jc = Σ_a R_ja Σ_c P̄_ac G'_jc,    P = Rᵀ G,  Ḡ = R P̄,

a product of small matrices in place of Ḡ itself, which is as large as all pair features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpa1.kernels.wanted import geometry_wanted, parameters_wanted


def contract(s: Tensor, value: Tensor, slope: Tensor, rows: Tensor) -> Tensor:
    """``reference.contraction`` of features G (N, K, C) that depend on s (N, K); twice differentiable.

    value: G, through whose graph second derivatives pass; slope: dG/ds; rows (N, K, 4). Returns (N, C, 4).
    """
    product: Tensor = _Contract.apply(s, value, slope, rows)
    return product.transpose(1, 2)


class _Contract(torch.autograd.Function):
    """P = Rᵀ G (N, 4, C). Its gradient is formed by autograd's own operations, so it is differentiable again."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, value: Tensor, slope: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(value, slope, rows)
        return torch.bmm(rows.transpose(1, 2), value)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        value, slope, rows = ctx.saved_tensors
        product_bar = cotangents[0].contiguous()  # the order in which small products are fast
        s_bar, value_bar, rows_bar = None, None, None
        if geometry_wanted():
            rows_bar = _Along.apply(value, product_bar)
        if parameters_wanted():
            value_bar = torch.bmm(rows, product_bar)  # from which the features' own graph finds the cotangent of s
        else:
            s_bar = (rows * _Along.apply(slope, product_bar)).sum(-1)
        return s_bar, value_bar, None, rows_bar


class _Along(torch.autograd.Function):
    """F Pᵀ: (N, K, C), (N, 4, C) → (N, K, 4), and gradients in the order in which small products are fast."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, product: Tensor) -> Tensor:
        ctx.save_for_backward(features, product)
        return torch.bmm(features, product.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        features, product = ctx.saved_tensors
        return torch.bmm(cotangents[0], product), torch.bmm(cotangents[0].transpose(1, 2), features)
