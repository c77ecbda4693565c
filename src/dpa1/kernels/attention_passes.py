"""What an attention layer does between its products, as torch forms it: the parts of ``attention`` that are sums and factors.

N atoms, K slots, H wide; u and p hold queries, keys and values side by side (N, K, 3 H). ``compiled_attention`` has a sibling
of each. Where it says so, an argument's memory becomes the result's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward
OptionalTensor = Tensor | None


class Given(NamedTuple):
    """What both derivatives of the scores read: T, e, Γ, w (N, K), f and S − A₀ where there is a factor, D̄ (N, K), τ.

    ``geometry``: whether the derivatives by w, Γ and f are wanted.
    """

    t: Tensor
    e: Tensor
    g: Tensor
    w: Tensor
    f: OptionalTensor
    s: OptionalTensor
    db: Tensor
    tau: float
    geometry: bool


class ScoresBack(NamedTuple):
    """S̄ (times τ), e∘Γ and, where geometry is wanted, Γ̄, f̄ and w̄."""

    s_bar: Tensor
    eg: Tensor
    g_bar: OptionalTensor
    f_bar: OptionalTensor
    w_bar: OptionalTensor


class ScoresTwice(NamedTuple):
    """Derivatives of Φ by S̄ (times τ), T, e, S (with a factor f), D; e∘Γ; where geometry is wanted those by Γ, f and w."""

    s_bar: Tensor
    b: Tensor
    e2: Tensor
    s2: OptionalTensor
    d_along: Tensor
    eg: Tensor
    g2: OptionalTensor
    f2: OptionalTensor
    w2: OptionalTensor


class Passes(NamedTuple):
    """One implementation of all."""

    units: Callable[[Tensor], tuple[Tensor, Tensor]]
    scores: Callable[[Tensor, OptionalTensor, float, float], tuple[Tensor, OptionalTensor]]
    weighted: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    outputs_back: Callable[[Tensor, Tensor, Tensor, OptionalTensor], tuple[Tensor, Tensor]]
    scores_back: Callable[[Given, OptionalTensor, OptionalTensor], ScoresBack]
    units_back: Callable[[Tensor, Tensor, Tensor, OptionalTensor], tuple[Tensor, Tensor]]
    units_along: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    scores_twice: Callable[[Given, Tensor, Tensor, OptionalTensor, OptionalTensor, OptionalTensor], ScoresTwice]
    outputs_twice: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    units_twice: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    norm_twice: Callable[..., tuple[Tensor, Tensor]]


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def _three(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, -1))


def _add(x: Tensor, y: OptionalTensor) -> Tensor:
    return x if y is None else x.add_(y)


def units(p: Tensor) -> tuple[Tensor, Tensor]:
    """u = p ρ in the memory of p, and ρ = 1/‖p‖ (N, K, 3)."""
    rho = torch.linalg.vector_norm(_three(p), dim=-1).clamp_(min=1e-12).reciprocal_()
    return _three(p).mul_(_column(rho)).flatten(-2), rho


def scores(s: Tensor, f: OptionalTensor, tau: float, null: float) -> tuple[Tensor, OptionalTensor]:
    """The exponent of e from products of queries and keys s, whose memory it takes; with a factor f also S − A₀."""
    if tau != 1:
        s = s.mul_(tau)
    if f is None:
        return s, None
    s = s.sub_(null)
    return torch.mul(s, f).add_(null), s


def weighted(e: Tensor, w: Tensor, g: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """D = null + e w (N, K) and e∘Γ; null (N,)."""
    return null.unsqueeze(1) + torch.bmm(e, _column(w)).squeeze(-1), e * g


def outputs_back(y_bar: Tensor, y: Tensor, d: Tensor, d_extra: OptionalTensor) -> tuple[Tensor, Tensor]:
    """ū = ȳ/D and D̄ = −ū·y, to which ``d_extra`` is added."""
    ub = y_bar / _column(d)
    return ub, _add((ub * y).sum(-1).neg_(), d_extra)


def scores_back(given: Given, e_extra: OptionalTensor, s_extra: OptionalTensor) -> ScoresBack:
    """ē = Γ∘T + D̄ wᵀ and S̄ = f∘e∘ē, to each of which what is extra is added."""
    t, e, g, w, f, s, db, tau, geometry = given
    e_bar = _add(torch.addcmul(_column(db) * w.unsqueeze(1), g, t), e_extra)
    s_bar = e_bar.mul_(e)
    f_bar = s_bar * s if s is not None and geometry else None
    if f is not None:
        s_bar = s_bar * f
    s_bar = _add(s_bar, s_extra).mul_(tau)
    w_bar = torch.bmm(_t(e), _column(db)).squeeze(-1) if geometry else None
    return ScoresBack(s_bar, e * g, e * t if geometry else None, f_bar, w_bar)


def units_back(u_bar: Tensor, u: Tensor, rho: Tensor, rho_extra: OptionalTensor) -> tuple[Tensor, Tensor]:
    """p̄ = ρ (Ū − u (u·Ū)) in the memory of Ū, and u·Ū (N, K, 3)."""
    dot = (_three(u_bar) * _three(u)).sum(-1)
    along = dot if rho_extra is None else dot.addcmul(rho, rho_extra)
    return _three(u_bar).addcmul_(_three(u), _column(along), value=-1).mul_(_column(rho)).flatten(-2), dot


def units_along(ap: Tensor, u: Tensor, p_bar: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of u for that of p (whose memory it takes), ap·u and the derivative of Φ by ρ (N, K, 3)."""
    ap_dot = (_three(ap) * _three(u)).sum(-1)
    rho2 = (_three(ap) * _three(p_bar)).sum(-1).div_(rho)
    along = _three(ap).addcmul_(_three(u), _column(ap_dot), value=-1).mul_(_column(rho)).flatten(-2)
    return along, ap_dot, rho2


def scores_twice(
    given: Given, s_along: Tensor, t_along: Tensor, ag: OptionalTensor, aw: OptionalTensor, af: OptionalTensor
) -> ScoresTwice:
    """For directions of q·k (before τ) and of T, whose memory may be used, and of Γ̄, w̄ and f̄."""
    t, e, g, w, f, s, db, tau, geometry = given
    s_along = s_along.mul_(tau)
    e_bar = torch.addcmul(_column(db) * w.unsqueeze(1), g, t)
    s_bar = e * e_bar
    s2, f2 = None, None
    if f is not None:
        f2 = s_bar * s_along if geometry else None
        s_along.mul_(f)
        if af is not None and s is not None:
            s_along.addcmul_(af, s)
            s2 = s_bar * af
        s_bar.mul_(f)
    e_along = e * s_along
    b = e_along * g  # ∂Φ/∂T
    e2 = e_bar.mul_(s_along).addcmul_(g, t_along)
    d_along = torch.bmm(e_along, _column(w))
    if ag is not None:
        b.addcmul_(e, ag)
        e2.addcmul_(ag, t)
    if aw is not None:
        e2.addcmul_(_column(db), aw.unsqueeze(1))
        d_along.baddbmm_(e, _column(aw))
    g2 = t_along.mul_(e).addcmul_(e_along, t) if geometry else None
    w2 = torch.bmm(_t(e_along), _column(db)).squeeze(-1) if geometry else None
    return ScoresTwice(s_bar.mul_(tau), b, e2, s2, d_along.squeeze(-1), e * g, g2, f2, w2)


def outputs_twice(y_along: Tensor, y: Tensor, d: Tensor, d_along: Tensor, ub: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of y from that of y D (whose memory it takes) and the derivatives of Φ by y and D."""
    y_along = y_along.addcmul_(y, _column(d_along), value=-1).div_(_column(d))
    return y_along, ub * _column(-d_along), (ub * y_along).sum(-1).neg_()


def units_twice(u2: Tensor, u_along: Tensor, p_bar: Tensor, dot: Tensor, ap_dot: Tensor) -> None:
    """Add to the derivative of Φ by u what ``units_back`` brings."""
    _three(u2).addcmul_(_three(u_along), _column(dot), value=-1)
    _three(u2).addcmul_(_three(p_bar), _column(ap_dot), value=-1)


def norm_twice(
    az: Tensor, z: Tensor, z_bar: Tensor, o_bar: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the layer norm: the derivative of Φ by z, and A = r Proj(a) for the direction a of z̄ = r Proj(ō∘scale)."""
    (a, _, _) = _layer_norm_backward(az, z, z.shape[-1:], mean, rstd, None, None, [True, False, False])
    n = (z - mean).mul_(rstd)
    hn = (o_bar * scale).mul_(n).mean(-1, keepdim=True)
    phi = (az * z_bar).mean(-1, keepdim=True)
    an = (az * n).mean(-1, keepdim=True)
    return n.mul_(phi).addcmul_(a, hn).addcmul_(z_bar, an).mul_(-rstd), a


TORCH = Passes(
    units, scores, weighted, outputs_back, scores_back, units_back, units_along, scores_twice, outputs_twice, units_twice,
    norm_twice,
)  # fmt: skip
