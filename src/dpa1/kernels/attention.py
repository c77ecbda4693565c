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
    factor = keys.pair_factor if keys.scaled else None
    null = _Null(keys.null_count, keys.null_score)
    return _Forward.apply(options, null, features, keys.weight, keys.gate, factor, *weights)[0]


class _Null(NamedTuple):
    number: Tensor
    score: float


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


def _column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def _three(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, -1))


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _add(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x.add_(y)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        options: AttentionOptions,
        null: _Null,
        x: Tensor,
        w: Tensor,
        g: Tensor,
        f: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        parts = AttentionWeights(*weights)
        slots = x.shape[:2]
        p = product(_rows(x), parts.in_weight, parts.in_bias).view(*slots, -1)
        rho = torch.linalg.vector_norm(_three(p), dim=-1).clamp_(min=1e-12).reciprocal_()
        u = _three(p).mul_(_column(rho)).flatten(-2)
        q, k, v = u.chunk(3, dim=-1)
        e, s = batched(q, _t(k)).mul_(options.temperature), None
        if f is not None:
            s = e.sub_(null.score)
            e = torch.mul(s, f).add_(null.score)
        e.exp_()
        d = (null.number * math.exp(null.score)).unsqueeze(1) + torch.bmm(e, _column(w)).squeeze(-1)
        y = batched(e * g, v).div_(_column(d))
        z = product(_rows(y), parts.out_weight, parts.out_bias).view_as(x).add_(x)
        o, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], parts.norm_scale, parts.norm_offset, options.eps)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.options, ctx.null = options, null
        ctx.save_for_backward(x, w, g, f, z, y, d, e, s, u, rho, mean, rstd, *weights)
        return o, z, y, d, e, s, u, rho, mean, rstd

    @staticmethod
    def backward(ctx: Any, o_bar: Tensor | None, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        extra = _Inner(*cotangents[:7])
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():
            made = _reverse(ctx.options, o_bar, extra, saved, geometry_wanted(), parameters_wanted())
            return (None, None, *made.gradients, *made.weights)
        if any(x is not None for x in extra):
            raise NotImplementedError("third derivatives of the fast attention layer; differentiate the reference")
        assert o_bar is not None
        if parameters_wanted():
            return (None, None, *_by_reference(ctx.options, ctx.null, o_bar, saved))
        return (None, None, *_Backward.apply(ctx.options, o_bar, *saved), *(None,) * 6)


class _Made(NamedTuple):
    gradients: tuple[Tensor | None, ...]  # of x, w, Γ, f
    weights: tuple[Tensor | None, ...]
    kept: tuple[Tensor, ...]  # what the second derivative uses


def _reverse(
    options: AttentionOptions,
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
    ub = y_bar / _column(d)
    db = _add((ub * y).sum(-1).neg_(), extra.d)
    t = batched(ub, _t(v))
    e_bar = _add(torch.addcmul(_column(db) * w.unsqueeze(1), g, t), extra.e)
    s_bar = e_bar.mul_(e)
    f_bar = s_bar * s if f is not None and geometry else None
    if f is not None:
        s_bar = s_bar * f
    s_bar = _add(s_bar, extra.s)
    eg = e * g
    u_bar = torch.empty_like(u)
    qb, kb, vb = u_bar.chunk(3, dim=-1)
    s_bar = s_bar.mul_(options.temperature)
    batched(s_bar, k, qb)
    batched(_t(s_bar), q, kb)
    batched(_t(eg), ub, vb)
    u_bar = _add(u_bar, extra.u)
    dot = (_three(u_bar) * _three(u)).sum(-1)
    along = dot if extra.rho is None else dot.addcmul(rho, extra.rho)
    p_bar = _three(u_bar).addcmul_(_three(u), _column(along), value=-1).mul_(_column(rho)).flatten(-2)
    x_bar = product(_rows(p_bar), parts.in_weight.t()).view_as(x).add_(z_bar)
    w_bar = torch.bmm(_t(e), _column(db)).squeeze(-1) if geometry else None
    g_bar = e * t if geometry else None
    of_weights: tuple[Tensor | None, ...] = (None,) * 6
    if weights:
        of_weights = (
            product(_rows(x).t(), _rows(p_bar)), p_bar.sum((0, 1)),
            product(_rows(y).t(), _rows(z_bar)), z_bar.sum((0, 1)), scale_bar, offset_bar,
        )  # fmt: skip
    return _Made((x_bar, w_bar, g_bar, f_bar), of_weights, (z_bar, db, t, p_bar, dot))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: AttentionOptions, o_bar: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
        made = _reverse(options, o_bar, NOTHING, saved, True, False)
        ctx.set_materialize_grads(False)
        ctx.options = options
        ctx.save_for_backward(o_bar, *made.kept, *saved)
        return made.gradients

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ax: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        o_bar, z_bar, db, t, p_bar, dot, *saved = ctx.saved_tensors
        x, w, g, f, z, y, d, e, s, u, rho, mean, rstd = saved[:13]
        parts, tau = AttentionWeights(*saved[13:]), ctx.options.temperature
        aw, ag, af = others
        geometry, weights = geometry_wanted(), parameters_wanted()
        q, k, v = u.chunk(3, dim=-1)
        ub = (
            product(_rows(z_bar), parts.out_weight.t()).view_as(y).div_(_column(d))
        )  # cheaper to form again than to keep
        ax = torch.zeros_like(x) if ax is None else ax.contiguous()
        # Unit vectors: whatever is parallel to u drops out in ``_reverse``, so p̄ and u̇ stand for Ū and a·W.
        ap = product(_rows(ax), parts.in_weight).view_as(u)
        ap_dot = (_three(ap) * _three(u)).sum(-1)
        rho2 = (_three(ap) * _three(p_bar)).sum(-1).div_(rho)
        u_along = _three(ap).addcmul_(_three(u), _column(ap_dot), value=-1).mul_(_column(rho)).flatten(-2)
        qa, ka, va = u_along.chunk(3, dim=-1)
        # Scores and exponentials.
        s_along = batched(qa, _t(k)).add_(batched(q, _t(ka))).mul_(tau)
        e_bar = torch.addcmul(_column(db) * w.unsqueeze(1), g, t)
        s_bar = e * e_bar
        s2, f2 = None, None
        if f is not None:
            f2 = s_bar * s_along if geometry else None
            s_along.mul_(f)
            if af is not None:
                s_along.addcmul_(af, s)
                s2 = s_bar * af
            s_bar.mul_(f)
        e_along = e * s_along
        b = e_along * g  # ∂Φ/∂T
        t_along = batched(ub, _t(va))
        e2 = e_bar.mul_(s_along).addcmul_(g, t_along)
        d_along = torch.bmm(e_along, _column(w))
        if ag is not None:
            b.addcmul_(e, ag)
            e2.addcmul_(ag, t)
        if aw is not None:
            e2.addcmul_(_column(db), aw.unsqueeze(1))
            d_along.baddbmm_(e, _column(aw))
        y_along = batched(b, v).add_(batched(e * g, va)).addcmul_(y, d_along, value=-1).div_(_column(d))
        y2 = ub * d_along.neg_()
        d2 = (ub * y_along).sum(-1).neg_()
        g2 = t_along.mul_(e).addcmul_(e_along, t) if geometry else None
        w2 = torch.bmm(_t(e_along), _column(db)).squeeze(-1) if geometry else None
        u2 = torch.empty_like(u)
        q2, k2, v2 = u2.chunk(3, dim=-1)
        s_bar.mul_(tau)
        batched(s_bar, ka, q2)
        batched(_t(s_bar), qa, k2)
        batched(_t(b), ub, v2)
        _three(u2).addcmul_(_three(u_along), _column(dot), value=-1)
        _three(u2).addcmul_(_three(p_bar), _column(ap_dot), value=-1)
        # Layer norm; Z̄ = r·Proj(h), and A = r·Proj(a) likewise.
        az = product(_rows(y_along), parts.out_weight).view_as(z).add_(ax)
        (a, _, _) = _layer_norm_backward(az, z, z.shape[-1:], mean, rstd, None, None, [True, False, False])
        n = (z - mean).mul_(rstd)
        hn = (o_bar * parts.norm_scale).mul_(n).mean(-1, keepdim=True)
        phi = (az * z_bar).mean(-1, keepdim=True)
        an = (az * n).mean(-1, keepdim=True)
        z2 = n.mul_(phi).addcmul_(a, hn).addcmul_(z_bar, an).mul_(-rstd)
        of_weights: list[Tensor | None] = [None] * 6
        if weights:
            of_weights[0] = product(_rows(ax).t(), _rows(p_bar))
            of_weights[2] = product(_rows(y_along).t(), _rows(z_bar))
            of_weights[4] = (o_bar * a).sum((0, 1))
        o_bar2 = a.mul_(parts.norm_scale)
        inner = _Inner(z2, y2, d2, e2, s2, u2, rho2)
        return (None, o_bar2, None, w2, g2, f2, *inner, None, None, *of_weights)


def _by_reference(
    options: AttentionOptions, null: _Null, o_bar: Tensor, saved: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients of everything, weights included: rarely asked for, so autograd forms them."""
    near: list[Any] = fresh([*saved[:4], *saved[13:]])
    attention, keys = plain_attention(near[1], near[2], near[3], null.number, null.score)
    out = reference.attention_layer(near[0], keys, AttentionWeights(*near[4:]), options, attention)
    return tuple(gradients(out, o_bar, near))
