"""Gated neighbour attention on a CUDA device, tile by tile: no (K, K) tensor is ever in memory.

Fast sibling of ``reference.gated_attention`` for every convention. With S = q·k, p = r_i f_j and c the cosine of the two
directions:

    A = S or (S − A₀)·p + A₀   e = exp(A − m)   Γ = c·p   D = n₀ exp(A₀ − m) + e w   y = (e∘Γ) v / D

m is a running maximum for unbounded scores and zero for bounded ones; y and all derivatives do not depend on it. With a
bar for the cotangent of each quantity:

    ū = ȳ/D   D̄ = −ū·y   T = ū vᵀ   Ā = e∘(Γ∘T + D̄ wᵀ)   Γ̄ = e∘T   p̄ = Γ̄∘c [+ Ā∘(S − A₀)]   c̄ = Γ̄∘p   S̄ = Ā [∘ p]

The double backward pass is the derivative of y and of these lines along the cotangents of the first backward pass (a
prime below): for φ = ⟨a, x̄(x, ȳ)⟩ one has ∂φ/∂ȳ = y' and ∂φ/∂x = x̄'.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpa1.kernels.gpu import common
from dpa1.kernels.gpu.common import dense, dot, load_rows, padded, store_rows, tile
from dpa1.kernels.reference import Keys


def supports(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> bool:
    """Widths whose tiles fit the registers."""
    return query.shape[-1] <= 256


def run(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> Tensor:
    """``reference.gated_attention``, twice differentiable in all but ``null_count``."""
    row = torch.ones_like(keys.factor) if keys.row is None else keys.row
    # Without an angle every direction is the same: then the cosine is 1.
    direction = keys.direction
    if direction is None:
        direction = torch.zeros(*row.shape, 3, dtype=row.dtype, device=row.device)
        direction[..., 0] = 1.0
    y, _, _ = attention(
        query, key, value, keys.weight, keys.factor, row, direction, keys.null_count,
        float(keys.null_score), keys.scaled, bounded,
    )  # fmt: skip
    return y


@triton.jit
def _vector(pointer: Any, base: Any, rows: Any, n: Any) -> Any:
    return tl.load(pointer + base + rows, mask=rows < n, other=0.0)


@triton.jit
def _cosine(a: Any, b: Any, base: Any, i: Any, j: Any, n: Any) -> Any:
    ax = tl.load(a + (base + i) * 3, mask=i < n, other=0.0)
    ay = tl.load(a + (base + i) * 3 + 1, mask=i < n, other=0.0)
    az = tl.load(a + (base + i) * 3 + 2, mask=i < n, other=0.0)
    bx = tl.load(b + (base + j) * 3, mask=j < n, other=0.0)
    by = tl.load(b + (base + j) * 3 + 1, mask=j < n, other=0.0)
    bz = tl.load(b + (base + j) * 3 + 2, mask=j < n, other=0.0)
    return ax[:, None] * bx[None, :] + ay[:, None] * by[None, :] + az[:, None] * bz[None, :]


@triton.jit
def _forward(
    q, k, v, w, f, r, d, null, y, total, top, n, width, null_score,
    SCALED: tl.constexpr, BOUNDED: tl.constexpr, B: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y, D and m of one tile of queries."""
    base = tl.program_id(0).to(tl.int64) * n
    i = tl.program_id(1) * B + tl.arange(0, B)
    columns = tl.arange(0, W)
    qi = load_rows(q, base, i, columns, n, width)
    ri = _vector(r, base, i, n)
    null_count = tl.load(null + tl.program_id(0))
    sum_y = tl.zeros([B, W], dtype=qi.dtype)
    sum_d = tl.zeros([B], dtype=qi.dtype)
    m = tl.zeros([B], dtype=qi.dtype)
    if not BOUNDED:
        m = tl.where(null_count > 0, m + null_score, m - 1e30)
    for start in range(0, n, B):
        j = start + tl.arange(0, B)
        wj, fj = _vector(w, base, j, n), _vector(f, base, j, n)
        kj, vj = load_rows(k, base, j, columns, n, width), load_rows(v, base, j, columns, n, width)
        a = dot(qi, tl.trans(kj), PRECISION)
        p = ri[:, None] * fj[None, :]
        if SCALED:
            a = (a - null_score) * p + null_score
        if BOUNDED:
            e = tl.exp(a)
        else:
            real = wj[None, :] != 0
            a = tl.where(real, a, -1e30)
            higher = tl.maximum(m, tl.max(a, axis=1))
            e = tl.where(real, tl.exp(a - higher[:, None]), 0.0)
            fade = tl.exp(m - higher)
            sum_y, sum_d, m = sum_y * fade[:, None], sum_d * fade, higher
        sum_d += tl.sum(e * wj[None, :], axis=1)
        sum_y += dot(e * p * _cosine(d, d, base, i, j, n), vj, PRECISION)
    sum_d += tl.where(null_count > 0, null_count * tl.exp(null_score - m), 0.0)
    store_rows(y, sum_y / sum_d[:, None], base, i, columns, n, width)
    tl.store(total + base + i, sum_d, mask=i < n)
    tl.store(top + base + i, m, mask=i < n)


@triton.jit
def _exponentials(s, wj, p, m, null_score, SCALED: tl.constexpr, BOUNDED: tl.constexpr):
    a = s
    if SCALED:
        a = (s - null_score) * p + null_score
    e = tl.exp(a - m[:, None])
    if not BOUNDED:
        e = tl.where(wj[None, :] != 0, e, 0.0)
    return e


@triton.jit
def _tangent(
    q, k, v, w, f, r, d, qt, kt, vt, wt, ft, rt, dt, y, total, top, yt, total_t, n, width, null_score,
    SCALED: tl.constexpr, BOUNDED: tl.constexpr, B: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y' and D' of one tile of queries."""
    base = tl.program_id(0).to(tl.int64) * n
    i = tl.program_id(1) * B + tl.arange(0, B)
    columns = tl.arange(0, W)
    qi, qti = load_rows(q, base, i, columns, n, width), load_rows(qt, base, i, columns, n, width)
    ri, rti = _vector(r, base, i, n), _vector(rt, base, i, n)
    di = tl.load(total + base + i, mask=i < n, other=1.0)
    m = _vector(top, base, i, n)
    sum_y = tl.zeros([B, W], dtype=qi.dtype)
    sum_d = tl.zeros([B], dtype=qi.dtype)
    for start in range(0, n, B):
        j = start + tl.arange(0, B)
        wj, wtj = _vector(w, base, j, n), _vector(wt, base, j, n)
        fj, ftj = _vector(f, base, j, n), _vector(ft, base, j, n)
        kj, ktj = load_rows(k, base, j, columns, n, width), load_rows(kt, base, j, columns, n, width)
        s = dot(qi, tl.trans(kj), PRECISION)
        a_t = dot(qti, tl.trans(kj), PRECISION) + dot(qi, tl.trans(ktj), PRECISION)
        p = ri[:, None] * fj[None, :]
        p_t = rti[:, None] * fj[None, :] + ri[:, None] * ftj[None, :]
        e = _exponentials(s, wj, p, m, null_score, SCALED, BOUNDED)
        if SCALED:
            a_t = a_t * p + (s - null_score) * p_t
        e_t = e * a_t
        c = _cosine(d, d, base, i, j, n)
        c_t = _cosine(dt, d, base, i, j, n) + _cosine(d, dt, base, i, j, n)
        sum_d += tl.sum(e_t * wj[None, :] + e * wtj[None, :], axis=1)
        vj, vtj = load_rows(v, base, j, columns, n, width), load_rows(vt, base, j, columns, n, width)
        sum_y += dot(e_t * p * c + e * (p_t * c + p * c_t), vj, PRECISION) + dot(e * p * c, vtj, PRECISION)
    yi = load_rows(y, base, i, columns, n, width)
    store_rows(yt, (sum_y - yi * sum_d[:, None]) / di[:, None], base, i, columns, n, width)
    tl.store(total_t + base + i, sum_d, mask=i < n)


@triton.jit
def _cotangent(
    q, k, v, w, f, r, d, y, total, top, g, q_bar, k_bar, v_bar, w_bar, f_bar, r_bar, d_bar,
    qt, kt, vt, wt, ft, rt, dt, yt, total_t, n, width, null_score,
    ROWS: tl.constexpr, TANGENT: tl.constexpr,
    SCALED: tl.constexpr, BOUNDED: tl.constexpr, B: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangents (with ``TANGENT``, their tangents) of one tile of queries (``ROWS``) or keys, over all of the others."""
    base = tl.program_id(0).to(tl.int64) * n
    own = tl.program_id(1) * B + tl.arange(0, B)
    columns = tl.arange(0, W)
    first = load_rows(q, base, own, columns, n, width)  # only for its type
    sum_a = tl.zeros([B, W], dtype=first.dtype)  # q̄ or k̄
    sum_b = tl.zeros([B, W], dtype=first.dtype)  # v̄
    sum_p = tl.zeros([B], dtype=first.dtype)  # r̄ or f̄
    sum_w = tl.zeros([B], dtype=first.dtype)
    sum_x = tl.zeros([B], dtype=first.dtype)
    sum_y = tl.zeros([B], dtype=first.dtype)
    sum_z = tl.zeros([B], dtype=first.dtype)
    for start in range(0, n, B):
        other = start + tl.arange(0, B)
        if ROWS:
            i, j = own, other
        else:
            i, j = other, own
        qi, kj = load_rows(q, base, i, columns, n, width), load_rows(k, base, j, columns, n, width)
        vj = load_rows(v, base, j, columns, n, width)
        ri, fj, wj = _vector(r, base, i, n), _vector(f, base, j, n), _vector(w, base, j, n)
        total_i = tl.load(total + base + i, mask=i < n, other=1.0)
        u = load_rows(g, base, i, columns, n, width) / total_i[:, None]
        yi = load_rows(y, base, i, columns, n, width)
        total_bar = -tl.sum(u * yi, axis=1)
        s = dot(qi, tl.trans(kj), PRECISION)
        p = ri[:, None] * fj[None, :]
        e = _exponentials(s, wj, p, _vector(top, base, i, n), null_score, SCALED, BOUNDED)
        c = _cosine(d, d, base, i, j, n)
        t = dot(u, tl.trans(vj), PRECISION)
        b = p * c * t + total_bar[:, None] * wj[None, :]
        a_bar = e * b
        s_bar = a_bar
        p_bar = e * t * c
        if SCALED:
            s_bar = a_bar * p
            p_bar += a_bar * (s - null_score)
        c_bar = e * t * p
        if TANGENT:
            qti, ktj = load_rows(qt, base, i, columns, n, width), load_rows(kt, base, j, columns, n, width)
            vtj = load_rows(vt, base, j, columns, n, width)
            rti, ftj, wtj = _vector(rt, base, i, n), _vector(ft, base, j, n), _vector(wt, base, j, n)
            s_t = dot(qti, tl.trans(kj), PRECISION) + dot(qi, tl.trans(ktj), PRECISION)
            p_t = rti[:, None] * fj[None, :] + ri[:, None] * ftj[None, :]
            a_t = s_t
            if SCALED:
                a_t = s_t * p + (s - null_score) * p_t
            e_t = e * a_t
            c_t = _cosine(dt, d, base, i, j, n) + _cosine(d, dt, base, i, j, n)
            gate_t = p_t * c + p * c_t
            u_t = -u * (_vector(total_t, base, i, n) / total_i)[:, None]
            total_bar_t = -tl.sum(u_t * yi + u * load_rows(yt, base, i, columns, n, width), axis=1)
            t_t = dot(u_t, tl.trans(vj), PRECISION) + dot(u, tl.trans(vtj), PRECISION)
            b_t = gate_t * t + p * c * t_t + total_bar_t[:, None] * wj[None, :] + total_bar[:, None] * wtj[None, :]
            a_bar_t = e_t * b + e * b_t
            gate_bar, gate_bar_t = e * t, e_t * t + e * t_t
            s_bar_t = a_bar_t
            p_bar = gate_bar_t * c + gate_bar * c_t
            if SCALED:
                s_bar_t = a_bar_t * p + a_bar * p_t
                p_bar += a_bar_t * (s - null_score) + a_bar * s_t
            c_bar = gate_bar_t * p + gate_bar * p_t
            if ROWS:
                sum_a += dot(s_bar_t, kj, PRECISION) + dot(s_bar, ktj, PRECISION)
            else:
                sum_a += dot(tl.trans(s_bar_t), qi, PRECISION) + dot(tl.trans(s_bar), qti, PRECISION)
                sum_b += dot(tl.trans(e_t * p * c + e * gate_t), u, PRECISION)
                sum_b += dot(tl.trans(e * p * c), u_t, PRECISION)
                sum_w += tl.sum(e_t * total_bar[:, None] + e * total_bar_t[:, None], axis=0)
        else:
            if ROWS:
                sum_a += dot(s_bar, kj, PRECISION)
            else:
                sum_a += dot(tl.trans(s_bar), qi, PRECISION)
                sum_b += dot(tl.trans(e * p * c), u, PRECISION)
                sum_w += tl.sum(e * total_bar[:, None], axis=0)
        # Each direction meets the others as a query and as a key; this pass forms one half of its cotangent.
        here = (base + other) * 3
        x = tl.load(d + here, mask=other < n, other=0.0)
        y_ = tl.load(d + here + 1, mask=other < n, other=0.0)
        z = tl.load(d + here + 2, mask=other < n, other=0.0)
        if not ROWS:
            c_bar = tl.trans(c_bar)
        sum_x += tl.sum(c_bar * x[None, :], axis=1)
        sum_y += tl.sum(c_bar * y_[None, :], axis=1)
        sum_z += tl.sum(c_bar * z[None, :], axis=1)
        if TANGENT:
            gate_p = e * t * p
            if not ROWS:
                gate_p = tl.trans(gate_p)
            sum_x += tl.sum(gate_p * tl.load(dt + here, mask=other < n, other=0.0)[None, :], axis=1)
            sum_y += tl.sum(gate_p * tl.load(dt + here + 1, mask=other < n, other=0.0)[None, :], axis=1)
            sum_z += tl.sum(gate_p * tl.load(dt + here + 2, mask=other < n, other=0.0)[None, :], axis=1)
        if ROWS:
            sum_p += tl.sum(p_bar * fj[None, :], axis=1)
        else:
            sum_p += tl.sum(p_bar * ri[:, None], axis=0)
        if TANGENT:
            plain = e * t * c
            if SCALED:
                plain += a_bar * (s - null_score)
            if ROWS:
                sum_p += tl.sum(plain * ftj[None, :], axis=1)
            else:
                sum_p += tl.sum(plain * rti[:, None], axis=0)
    here = (base + own) * 3
    inside = own < n
    if ROWS:
        store_rows(q_bar, sum_a, base, own, columns, n, width)
        tl.store(r_bar + base + own, sum_p, mask=inside)
    else:
        # The pass over queries has left its half there.
        sum_x += tl.load(d_bar + here, mask=inside, other=0.0)
        sum_y += tl.load(d_bar + here + 1, mask=inside, other=0.0)
        sum_z += tl.load(d_bar + here + 2, mask=inside, other=0.0)
        store_rows(k_bar, sum_a, base, own, columns, n, width)
        store_rows(v_bar, sum_b, base, own, columns, n, width)
        tl.store(f_bar + base + own, sum_p, mask=inside)
        tl.store(w_bar + base + own, sum_w, mask=inside)
    tl.store(d_bar + here, sum_x, mask=inside)
    tl.store(d_bar + here + 1, sum_y, mask=inside)
    tl.store(d_bar + here + 2, sum_z, mask=inside)


def _launch(q: Tensor, scaled: bool, bounded: bool) -> tuple[tuple[int, int], dict[str, Any]]:
    b = tile(q.dtype)
    options = {"SCALED": scaled, "BOUNDED": bounded, "B": b, "W": padded(q.shape[-1]), "PRECISION": common.PRECISION}
    return (q.shape[0], triton.cdiv(q.shape[1], b)), options


@torch.library.custom_op("dpa1::gated_attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, f: Tensor, r: Tensor, d: Tensor, null: Tensor,
    null_score: float, scaled: bool, bounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y (N, K, W), D and m (N, K); see the head of this file."""
    q, k, v, w, f, r, d, null = dense(q, k, v, w, f, r, d, null)
    y, total, top = torch.empty_like(q), torch.empty_like(w), torch.empty_like(w)
    if y.numel():
        grid, options = _launch(q, scaled, bounded)
        _forward[grid](q, k, v, w, f, r, d, null, y, total, top, q.shape[1], q.shape[2], null_score, **options)
    return y, total, top


@attention.register_fake
def _(q, k, v, w, f, r, d, null, null_score, scaled, bounded):
    return torch.empty_like(q), torch.empty_like(w), torch.empty_like(w)


@torch.library.custom_op("dpa1::gated_attention_backward", mutates_args=())
def backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, f: Tensor, r: Tensor, d: Tensor, y: Tensor, total: Tensor,
    top: Tensor, null_score: float, scaled: bool, bounded: bool,
) -> list[Tensor]:  # fmt: skip
    """Cotangents of q, k, v, w, f, r, d."""
    inputs = dense(q, k, v, w, f, r, d, y, total, top, g)
    bars = [torch.empty_like(x) for x in inputs[:7]]
    none = [inputs[0]] * 9  # never read
    if q.numel():
        grid, options = _launch(q, scaled, bounded)
        for rows in (True, False):
            _cotangent[grid](*inputs, *bars, *none, q.shape[1], q.shape[2], null_score, rows, False, **options)
    return bars


@backward.register_fake
def _(g, q, k, v, w, f, r, d, y, total, top, null_score, scaled, bounded):
    return [torch.empty_like(x) for x in (q, k, v, w, f, r, d)]


@torch.library.custom_op("dpa1::gated_attention_double_backward", mutates_args=())
def double_backward(
    along: list[Tensor], g: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, f: Tensor, r: Tensor, d: Tensor,
    y: Tensor, total: Tensor, top: Tensor, null_score: float, scaled: bool, bounded: bool,
) -> list[Tensor]:  # fmt: skip
    """Cotangents of g, q, k, v, w, f, r, d for those (``along``) of what ``backward`` returns."""
    inputs = dense(q, k, v, w, f, r, d, y, total, top, g)
    tangents = dense(*along)
    y_t, total_t = torch.empty_like(inputs[7]), torch.empty_like(inputs[8])
    bars = [torch.empty_like(x) for x in inputs[:7]]
    if q.numel():
        grid, options = _launch(q, scaled, bounded)
        size = (q.shape[1], q.shape[2], null_score)
        _tangent[grid](*inputs[:7], *tangents, *inputs[7:10], y_t, total_t, *size, **options)
        for rows in (True, False):
            _cotangent[grid](*inputs, *bars, *tangents, y_t, total_t, *size, rows, True, **options)
    return [y_t, *bars]


@double_backward.register_fake
def _(along, g, q, k, v, w, f, r, d, y, total, top, null_score, scaled, bounded):
    return [torch.empty_like(x) for x in (y, q, k, v, w, f, r, d)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[8:]


def _first(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # ``output`` (y) is saved with its graph; its part in the second derivative is already in the formulas.
    *inputs, y, total, top = ctx.saved_tensors
    return (*backward(g, *inputs, y.detach(), total, top, *ctx.options), None, None, None, None)


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:11])
    ctx.options = inputs[11:]


def _second(ctx: Any, bars: list[Tensor]) -> tuple[Tensor | None, ...]:
    _g, *inputs = ctx.saved_tensors
    along = [torch.zeros_like(x) if bar is None else bar for x, bar in zip(inputs, bars, strict=False)]
    return (*double_backward(along, *ctx.saved_tensors, *ctx.options), None, None, None, None, None, None)


attention.register_autograd(_first, setup_context=_keep)
backward.register_autograd(_second, setup_context=_keep_first)
