"""An attention layer whose queries, keys and values are given, with hand-derived first derivatives; for inference.

Fast sibling of ``reference.projected_layer``, for bounded scores and constant weights. With a bar for the cotangent:

    e = exp(q kᵀ)   D = n₀ + e w   y = (e∘Γ) v / D   z = x + y·W_o + b_o   o = LN(z)
    ū = ȳ/D   D̄ = −ū·y   T = ū vᵀ   S̄ = e∘(Γ∘T + D̄ wᵀ)   q̄ = S̄ k   k̄ = S̄ᵀ q   v̄ = (e∘Γ)ᵀ ū   Γ̄ = e∘T   w̄ = eᵀ D̄

DeePMD-kit's smooth attention has e = exp(f∘(S − A₀) + A₀) with a pair factor f. What lies between the products are the passes of
``attention_passes``, at temperature 1. Higher derivatives are the reference's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.attention_passes import TORCH, Given, Passes
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
    return layer(TORCH, features, query, key, value, keys, weights, options)


def layer(
    passes: Passes,
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> Tensor:
    """The same, with certain passes between the products."""
    factor = keys.pair_factor if keys.scaled else None
    how = _How(passes, keys.null_count, keys.null_score, weights, options)
    return _Layer.apply(how, features, query, key, value, keys.weight, keys.gate, factor)


class _How(NamedTuple):
    passes: Passes
    null_count: Tensor
    null_score: float
    weights: AttentionWeights
    options: AttentionOptions


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: _How, x: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, g: Tensor, f: Tensor | None
    ) -> Tensor:
        weights = how.weights
        e, s = how.passes.scores(batched(q, _t(k)), f, 1.0, how.null_score)
        e.exp_()
        d, eg = how.passes.weighted(e, w, g, how.null_count * math.exp(how.null_score))
        y = batched(eg, v).div_(d.unsqueeze(-1))
        z = product(y.flatten(0, 1), weights.out_weight, weights.out_bias).view_as(x).add_(x)
        o, mean, rstd = torch.native_layer_norm(
            z, z.shape[-1:], weights.norm_scale, weights.norm_offset, how.options.eps
        )
        ctx.how = how
        ctx.save_for_backward(x, q, k, v, w, g, f, e, d, y, z, mean, rstd, s)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, q, k, v, w, g, f, e, d, y, z, mean, rstd, s = ctx.saved_tensors
        how, weights = ctx.how, ctx.how.weights
        if torch.is_grad_enabled():
            return (None, *_by_reference(how, grads[0], x, q, k, v, w, g, f))
        z_bar, _, _ = torch.ops.aten.native_layer_norm_backward(
            grads[0], z, z.shape[-1:], mean, rstd, weights.norm_scale, weights.norm_offset, [True, False, False]
        )
        y_bar = product(z_bar.flatten(0, 1), weights.out_weight.t()).view_as(y)
        ub, db = how.passes.outputs_back(y_bar, y, d, None)
        given = Given(batched(ub, _t(v)), e, g, w, f, s, db, 1.0, geometry=True)
        found = how.passes.scores_back(given, None, None)
        q_bar, k_bar = batched(found.s_bar, k), batched(_t(found.s_bar), q)
        return None, z_bar, q_bar, k_bar, batched(_t(found.eg), ub), found.w_bar, found.g_bar, found.f_bar


def _by_reference(how: _How, grad: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    near: list[Any] = fresh(inputs)
    w, g, f = near[4:]
    attention, keys = plain_attention(w, g, f, how.null_count, how.null_score)
    out = reference.projected_layer(near[0], near[1], near[2], near[3], keys, how.weights, how.options, attention)
    return gradients(out, grad, near)
