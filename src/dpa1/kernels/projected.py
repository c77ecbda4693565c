"""An attention layer whose queries, keys and values are given, with hand-derived first derivatives; for inference.

Fast sibling of ``reference.projected_layer``, for bounded scores and constant weights. With a bar for the cotangent:

    e = exp(q kᵀ)   D = n₀ + e w   y = (e∘Γ) v / D   z = x + y·W_o + b_o   o = LN(z)
    ū = ȳ/D   D̄ = −ū·y   T = ū vᵀ   S̄ = e∘(Γ∘T + D̄ wᵀ)   q̄ = S̄ k   k̄ = S̄ᵀ q   v̄ = (e∘Γ)ᵀ ū   Γ̄ = e∘T   w̄ = eᵀ D̄

DeePMD-kit's smooth attention has e = exp(f∘(S − A₀) + A₀) with a pair factor f. Higher derivatives are the reference's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.by_reference import fresh, gradients, plain_attention
from dpa1.kernels.products import batched, product
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, Keys


def supports(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> bool:
    """Bounded scores and weights that nobody trains."""
    return options.bounded and not any(weight.requires_grad for weight in weights)


def run(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> Tensor:
    """``reference.projected_layer``, differentiable in features, queries, keys, values and ``keys``."""
    factor = keys.pair_factor if keys.scaled else None
    constants = (keys.null_count, keys.null_score, weights, options)
    return _Layer.apply(constants, features, query, key, value, keys.weight, keys.gate, factor)


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, constants: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, g: Tensor, f: Tensor | None
    ) -> Tensor:
        null_count, null_score, weights, options = constants
        s = batched(q, _t(k))
        e = s if f is None else s.sub_(null_score).mul(f).add_(null_score)
        e = e.exp_()
        d = torch.bmm(e, w.unsqueeze(-1)).add_((null_count * math.exp(null_score))[:, None, None])
        eg = e * g
        y = batched(eg, v).div_(d)
        z = product(y.flatten(0, 1), weights.out_weight, weights.out_bias).view_as(x).add_(x)
        o, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], weights.norm_scale, weights.norm_offset, options.eps)
        ctx.constants = constants
        ctx.save_for_backward(x, q, k, v, w, g, f, e, eg, d, y, z, mean, rstd, None if f is None else s)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, q, k, v, w, g, f, e, eg, d, y, z, mean, rstd, s = ctx.saved_tensors
        weights = ctx.constants[2]
        if torch.is_grad_enabled():
            return (None, *_by_reference(ctx.constants, grads[0], x, q, k, v, w, g, f))
        z_bar, _, _ = torch.ops.aten.native_layer_norm_backward(
            grads[0], z, z.shape[-1:], mean, rstd, weights.norm_scale, weights.norm_offset, [True, False, False]
        )
        u = product(z_bar.flatten(0, 1), weights.out_weight.t()).view_as(y).div_(d)
        d_bar = (u * y).sum(-1, keepdim=True).neg_()
        t = batched(u, _t(v))
        s_bar = torch.addcmul(d_bar * w.unsqueeze(1), g, t).mul_(e)
        f_bar = None
        if f is not None:
            f_bar = s_bar * s
            s_bar.mul_(f)
        q_bar, k_bar, v_bar = batched(s_bar, k), batched(_t(s_bar), q), batched(_t(eg), u)
        w_bar = torch.bmm(_t(e), d_bar).squeeze(-1)
        return None, z_bar, q_bar, k_bar, v_bar, w_bar, t.mul_(e), f_bar


def _by_reference(constants: Any, grad: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    null_count, null_score, weights, options = constants
    near: list[Any] = fresh(inputs)
    w, g, f = near[4:]
    attention, keys = plain_attention(w, g, f, null_count, null_score)
    out = reference.projected_layer(near[0], near[1], near[2], near[3], keys, weights, options, attention)
    return gradients(out, grad, near)
