"""Gated attention with hand-derived first and second derivatives, a few atoms at a time.

Fast sibling of ``reference.gated_attention`` for bounded scores. Autograd would keep some forty (N, K, K) temporaries
per layer for a training step; here nothing of that size outlives a chunk, which fits the processor's cache.

Notation: E = exp(q kᵀ), D = n₀ + E w, U = (E∘Γ) v, y = U/D. With ȳ the cotangent of y:

    Ū = ȳ/D      D̄ = −(ȳ·y)/D      T = Ū vᵀ      X = Γ∘T + D̄ wᵀ
    q̄ = (E∘X) k      k̄ = (E∘X)ᵀ q      v̄ = (E∘Γ)ᵀ Ū      w̄ = Eᵀ D̄      Γ̄ = E∘T

The second derivative differentiates Φ = ⟨a, (q̄, k̄, v̄, w̄, Γ̄)⟩ = ȳ·ẏ, where ẏ is the forward derivative along a.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels.reference import Keys

CHUNK_ELEMENTS = 131_072  # of one (n, K, K) temporary: 0.5 MB in float32


def supports(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> bool:
    """Scores that are neither scaled nor unbounded."""
    return bounded and not keys.scaled and keys.null_score == 0.0


def run(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> Tensor:
    """``reference.gated_attention``, twice differentiable in all but ``keys.null_count``."""
    return _Forward.apply(query, key, value, keys.weight, keys.gate, keys.null_count)


def _chunks(like: Tensor) -> Iterator[slice]:
    atoms, slots = like.shape[:2]
    size = max(1, CHUNK_ELEMENTS // max(slots * slots, 1))
    for start in range(0, atoms, size):
        yield slice(start, start + size)


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, w: Tensor, g: Tensor, null: Tensor) -> Tensor:
        y, d = torch.empty_like(v), torch.empty_like(w)
        for c in _chunks(q):
            e = torch.bmm(q[c], _t(k[c])).exp_()
            d[c] = null[c].unsqueeze(1) + torch.bmm(e, _column(w[c])).squeeze(-1)
            y[c] = torch.bmm(e.mul_(g[c]), v[c]).div_(_column(d[c]))
        ctx.save_for_backward(q, k, v, w, g, null, y, d)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w, g, null, y, d = ctx.saved_tensors
        return (*_Backward.apply(grads[0], q, k, v, w, g, null, y.detach(), d.detach()), None)


class _Backward(torch.autograd.Function):
    """y and D are passed along as recomputable constants; their dependence on the inputs is in the derivative below."""

    @staticmethod
    def forward(
        ctx: Any, yb: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, g: Tensor, null: Tensor, y: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        qb, kb, vb, wb, gb = (torch.empty_like(x) for x in (q, k, v, w, g))
        ub_all = yb / _column(d)
        db_all = -(ub_all * y).sum(-1)
        for c in _chunks(q):
            ub, db = ub_all[c], _column(db_all[c])
            e = torch.bmm(q[c], _t(k[c])).exp_()
            et = torch.bmm(ub, _t(v[c])).mul_(e)
            gb[c] = et
            wb[c] = torch.bmm(_t(e), db).squeeze(-1)
            sb = et.mul_(g[c]).addcmul_(e, db * w[c].unsqueeze(1))
            qb[c] = torch.bmm(sb, k[c])
            kb[c] = torch.bmm(_t(sb), q[c])
            vb[c] = torch.bmm(_t(e.mul_(g[c])), ub)
        ctx.save_for_backward(yb, q, k, v, w, g, y, d)
        return qb, kb, vb, wb, gb

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        yb, q, k, v, w, g, y, d = ctx.saved_tensors
        aq, ak, av, aw, ag = along
        yb2, q2, k2, v2, w2, g2 = (torch.empty_like(x) for x in (yb, q, k, v, w, g))
        for c in _chunks(q):
            dc = _column(d[c])
            wc = w[c].unsqueeze(1)
            ub = yb[c] / dc
            dot = (ub * y[c]).sum(-1, keepdim=True)  # = −D̄
            e = torch.bmm(q[c], _t(k[c])).exp_()
            t = torch.bmm(ub, _t(v[c]))
            t_along = torch.bmm(ub, _t(av[c]))
            s_dot = torch.bmm(aq[c], _t(k[c])).baddbmm_(q[c], _t(ak[c]))
            x = torch.addcmul(-dot * wc, g[c], t)
            eg = e * g[c]
            e_dot = e * s_dot
            b = torch.addcmul(e_dot * g[c], e, ag[c])  # ∂Φ/∂T
            u_dot = torch.bmm(b, v[c]).baddbmm_(eg, av[c])
            d_dot = torch.bmm(e_dot, _column(w[c])).baddbmm_(e, _column(aw[c]))
            yb2[c] = (u_dot - y[c] * d_dot) / dc
            # y and D depend on the inputs: gU and gD continue as in the first backward.
            gu = -d_dot * ub / dc
            gd = (2.0 * d_dot * dot - (u_dot * ub).sum(-1, keepdim=True)) / dc
            gt = torch.bmm(gu, _t(v[c]))
            g2[c] = torch.addcmul(e * (t_along + gt), e_dot, t)
            z = s_dot * x
            z += ag[c] * t + g[c] * (t_along + gt) - dot * aw[c].unsqueeze(1) + gd * wc
            z *= e
            sb = x.mul_(e)
            q2[c] = torch.bmm(z, k[c]).baddbmm_(sb, ak[c])
            k2[c] = torch.bmm(_t(z), q[c]).baddbmm_(_t(sb), aq[c])
            v2[c] = torch.bmm(_t(b), ub).baddbmm_(_t(eg), gu)
            w2[c] = (torch.bmm(_t(e_dot), -dot).baddbmm_(_t(e), gd)).squeeze(-1)
        return yb2, q2, k2, v2, w2, g2, None, None, None
