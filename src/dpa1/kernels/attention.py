"""A whole attention layer with hand-derived first and second derivatives, for bounded scores.

Fast sibling of ``reference.attention_layer``. Autograd's chain would write some hundred temporaries per layer for a
training step, each through memory, and form products twice that one pass can share. Forward, with p = x·W + b:

    u = p·ρ, ρ = 1/‖p‖   S = τ u_q u_kᵀ   e = exp(S)   D = n₀ + e w   y = (e∘Γ) u_v / D   z = x + y·W_o + b_o   o = LN(z)

DeePMD-kit's smooth attention has e = exp(f∘(S − A₀) + A₀) with a pair factor f. A bar is the cotangent of what it is above:

    ū = ȳ/D   D̄ = −ū·y   T = ū u_vᵀ   ē = Γ∘T + D̄ wᵀ   S̄ = f∘e∘ē   Γ̄ = e∘T   w̄ = eᵀD̄   p̄ = ρ(Ū − u(u·Ū))

The second derivative differentiates Φ = ⟨a, x̄⟩ + …, a the cotangent of x̄. Through every intermediate it needs the
derivative of Φ at fixed other intermediates; the way from there back to x and the weights is that of the first
derivative. So the intermediates are outputs of the forward function: autograd carries their cotangents to its
backward, where one pass serves the loss's dependence on o and on the forces together.
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
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward


def supports(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> bool:
    """Unit queries and keys, and a temperature at which no exponential overflows."""
    return options.bounded


def run(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> Tensor:
    """``reference.attention_layer``, twice differentiable in all but ``keys.null_count``."""
    return layer(TORCH, features, keys, weights, options)


def layer(passes: Passes, features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> Tensor:
    """The same, with certain passes between the products."""
    factor = keys.pair_factor if keys.scaled else None
    how = _How(passes, options, keys.null_count, keys.null_score)
    return _Forward.apply(how, features, keys.weight, keys.gate, factor, *weights)[0]


class _How(NamedTuple):
    passes: Passes
    options: AttentionOptions
    null_count: Tensor
    null_score: float


class _Inner(NamedTuple):
    """Intermediates of the forward pass; also their cotangents (``z`` instead of ``mean`` and ``rstd`` of the norm)."""

    z: Any
    y: Any
    d: Any
    e: Any
    s: Any  # S − A₀ where a pair factor multiplies it, else None
    u: Any
    rho: Any


NOTHING = _Inner(*(None,) * 7)


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _add(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x.add_(y)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        how: _How,
        x: Tensor,
        w: Tensor,
        g: Tensor,
        f: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        parts = AttentionWeights(*weights)
        slots = x.shape[:2]
        p = product(_rows(x), parts.in_weight, parts.in_bias).view(*slots, -1)
        u, rho = how.passes.units(p)
        q, k, v = u.chunk(3, dim=-1)
        e, s = how.passes.scores(batched(q, _t(k)), f, how.options.temperature, how.null_score)
        e.exp_()
        d, eg = how.passes.weighted(e, w, g, how.null_count * math.exp(how.null_score))
        y = batched(eg, v).div_(d.unsqueeze(-1))
        z = product(_rows(y), parts.out_weight, parts.out_bias).view_as(x).add_(x)
        o, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], parts.norm_scale, parts.norm_offset, how.options.eps)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.how = how
        ctx.save_for_backward(x, w, g, f, z, y, d, e, s, u, rho, mean, rstd, *weights)
        return o, z, y, d, e, s, u, rho, mean, rstd

    @staticmethod
    def backward(ctx: Any, o_bar: Tensor | None, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        extra = _Inner(*cotangents[:7])
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():
            made = _reverse(ctx.how, o_bar, extra, saved, geometry_wanted(), parameters_wanted())
            return (None, *made.gradients, *made.weights)
        if any(x is not None for x in extra):
            raise NotImplementedError("third derivatives of the fast attention layer; differentiate the reference")
        assert o_bar is not None
        if parameters_wanted():
            return (None, *_by_reference(ctx.how, o_bar, saved))
        return (None, *_Backward.apply(ctx.how, o_bar, *saved), *(None,) * 6)


class _Made(NamedTuple):
    gradients: tuple[Tensor | None, ...]  # of x, w, Γ, f
    weights: tuple[Tensor | None, ...]
    kept: tuple[Tensor, ...]  # what the second derivative uses


def _reverse(
    how: _How,
    o_bar: Tensor | None,
    extra: _Inner,
    saved: tuple[Any, ...],
    geometry: bool,
    weights: bool,
) -> _Made:
    """From the cotangents of o and of the intermediates to those of the inputs."""
    x, w, g, f, z, y, d, e, s, u, rho, mean, rstd = saved[:13]
    parts = AttentionWeights(*saved[13:])
    q, k, v = u.chunk(3, dim=-1)
    o_bar = torch.zeros_like(x) if o_bar is None else o_bar
    z_bar, scale_bar, offset_bar = _layer_norm_backward(
        o_bar, z, z.shape[-1:], mean, rstd, parts.norm_scale, parts.norm_offset, [True, weights, weights]
    )
    z_bar = _add(z_bar, extra.z)
    y_bar = _add(product(_rows(z_bar), parts.out_weight.t()).view_as(y), extra.y)
    ub, db = how.passes.outputs_back(y_bar, y, d, extra.d)
    t = batched(ub, _t(v))
    given = Given(t, e, g, w, f, s, db, how.options.temperature, geometry)
    found = how.passes.scores_back(given, extra.e, extra.s)
    u_bar = torch.empty_like(u)
    qb, kb, vb = u_bar.chunk(3, dim=-1)
    batched(found.s_bar, k, qb)
    batched(_t(found.s_bar), q, kb)
    batched(_t(found.eg), ub, vb)
    p_bar, dot = how.passes.units_back(_add(u_bar, extra.u), u, rho, extra.rho)
    x_bar = product(_rows(p_bar), parts.in_weight.t()).view_as(x).add_(z_bar)
    of_weights: tuple[Tensor | None, ...] = (None,) * 6
    if weights:
        of_weights = (
            product(_rows(x).t(), _rows(p_bar)), p_bar.sum((0, 1)),
            product(_rows(y).t(), _rows(z_bar)), z_bar.sum((0, 1)), scale_bar, offset_bar,
        )  # fmt: skip
    return _Made((x_bar, found.w_bar, found.g_bar, found.f_bar), of_weights, (z_bar, db, t, p_bar, dot))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: _How, o_bar: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
        made = _reverse(how, o_bar, NOTHING, saved, True, False)
        ctx.set_materialize_grads(False)
        ctx.how = how
        ctx.save_for_backward(o_bar, *made.kept, *saved)
        return made.gradients

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ax: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        o_bar, z_bar, db, t, p_bar, dot, *saved = ctx.saved_tensors
        x, w, g, f, z, y, d, e, s, u, rho, mean, rstd = saved[:13]
        parts, passes = AttentionWeights(*saved[13:]), ctx.how.passes
        aw, ag, af = others
        geometry, weights = geometry_wanted(), parameters_wanted()
        q, k, v = u.chunk(3, dim=-1)
        # cheaper to form again than to keep
        ub = product(_rows(z_bar), parts.out_weight.t()).view_as(y).div_(d.unsqueeze(-1))
        ax = torch.zeros_like(x) if ax is None else ax.contiguous()
        # Unit vectors: whatever is parallel to u drops out in ``_reverse``, so p̄ and u̇ stand for Ū and a·W.
        ap = product(_rows(ax), parts.in_weight).view_as(u)
        u_along, ap_dot, rho2 = passes.units_along(ap, u, p_bar, rho)
        qa, ka, va = u_along.chunk(3, dim=-1)
        s_along, t_along = batched(qa, _t(k)).add_(batched(q, _t(ka))), batched(ub, _t(va))
        given = Given(t, e, g, w, f, s, db, ctx.how.options.temperature, geometry)
        made = passes.scores_twice(given, s_along, t_along, ag, aw, af)
        y_along = batched(made.b, v).add_(batched(made.eg, va))
        y_along, y2, d2 = passes.outputs_twice(y_along, y, d, made.d_along, ub)
        u2 = torch.empty_like(u)
        q2, k2, v2 = u2.chunk(3, dim=-1)
        batched(made.s_bar, ka, q2)
        batched(_t(made.s_bar), qa, k2)
        batched(_t(made.b), ub, v2)
        passes.units_twice(u2, u_along, p_bar, dot, ap_dot)
        az = product(_rows(y_along), parts.out_weight).view_as(z).add_(ax)
        z2, a = passes.norm_twice(az, z, z_bar, o_bar, mean, rstd, parts.norm_scale)
        of_weights: list[Tensor | None] = [None] * 6
        if weights:
            of_weights[0] = product(_rows(ax).t(), _rows(p_bar))
            of_weights[2] = product(_rows(y_along).t(), _rows(z_bar))
            of_weights[4] = (o_bar * a).sum((0, 1))
        o_bar2 = a.mul_(parts.norm_scale)
        inner = _Inner(z2, y2, d2, made.e2, made.s2, u2, rho2)
        return (None, o_bar2, None, made.w2, made.g2, made.f2, *inner, None, None, *of_weights)


def _by_reference(how: _How, o_bar: Tensor, saved: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Differentiable gradients of everything, weights included: rarely asked for, so autograd forms them."""
    near: list[Any] = fresh([*saved[:4], *saved[13:]])
    attention, keys = plain_attention(near[1], near[2], near[3], how.null_count, how.null_score)
    out = reference.attention_layer(near[0], keys, AttentionWeights(*near[4:]), how.options, attention)
    return tuple(gradients(out, o_bar, near))
