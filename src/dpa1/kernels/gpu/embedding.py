"""The embedding net and its derivative by the distance on a CUDA device, in one kernel without intermediates in memory.

Fast sibling of ``reference.embedding`` for three layers of tanh. As on CPU (see ``dpa1.kernels.embedding``) the slope
G' = dG/ds is carried along: a force is Ḡ·G', and the gradient of a force loss one backward pass from the cotangents of G
and G' together, which computes the layers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpa1.kernels import embedding_net, reference
from dpa1.kernels.by_reference import fresh, gradients
from dpa1.kernels.gpu import common
from dpa1.kernels.gpu.common import dense, dot, load_rows, padded, store_rows, tanh, tile
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

PROGRAMS = 512  # at most, that share the sums over pairs


def supports(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> bool:
    """Three layers of tanh up to 128 wide, with biases, without a learned timestep or a residual around the first one."""
    narrow = all(layer.weight.shape[1] <= 128 for layer in layers)
    return narrow and len(layers) == 3 and embedding_net.supports(radial, pair, table, layers, activation)


def run(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """``reference.embedding``, twice differentiable in all floating-point arguments."""
    found = embedding_net.parts(radial, pair, table, layers)
    index = torch.zeros_like(found.s, dtype=torch.int64) if found.pair is None else found.pair
    value, _ = net(index, found.s, found.types, *found.weights, *found.repeats)
    return value.view(*radial.shape, -1)


@triton.jit
def _residual(n_in, repeats, ROWS: tl.constexpr, COLUMNS: tl.constexpr, like):
    """(ROWS, COLUMNS) zeros and ones: a product with it puts ``repeats`` copies side by side."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return ((j % n_in == i) & (i < n_in) & (j < n_in * repeats)).to(like.dtype)


@triton.jit
def _layer(h, slope, weight, bias, residual, REPEATS: tl.constexpr, PRECISION: tl.constexpr):
    t = tanh(dot(h, weight, PRECISION) + bias[None, :])
    g = dot(slope, weight, PRECISION)
    out, out_slope = t, (1.0 - t * t) * g
    if REPEATS > 0:
        out += dot(h, residual, PRECISION)
        out_slope += dot(slope, residual, PRECISION)
    return t, g, out, out_slope


@triton.jit
def _first_layer(index, s, types, w, at, n, n1, C1: tl.constexpr):
    columns = tl.arange(0, C1)
    row = tl.load(index + at, mask=at < n, other=0)
    x = tl.load(s + at, mask=at < n, other=0.0)
    inside = (at[:, None] < n) & (columns[None, :] < n1)
    offset = tl.load(types + row[:, None] * n1 + columns[None, :], mask=inside, other=0.0)
    w1 = tl.load(w + columns, mask=columns < n1, other=0.0)
    h = tanh(offset + x[:, None] * w1[None, :])
    return x, w1, h, (1.0 - h * h) * w1[None, :]


@triton.jit
def _forward(
    index, s, types, w, W2, b2, W3, b3, value, slope, n, n1, n2, n3,
    R2: tl.constexpr, R3: tl.constexpr, B: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, C3: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    c1, c2, c3 = tl.arange(0, C1), tl.arange(0, C2), tl.arange(0, C3)
    _x, _w1, h1, d1 = _first_layer(index, s, types, w, at, n, n1, C1)
    weight2, bias2 = load_rows(W2, 0, c1, c2, n1, n2), tl.load(b2 + c2, mask=c2 < n2, other=0.0)
    _t2, _g2, h2, d2 = _layer(h1, d1, weight2, bias2, _residual(n1, R2, C1, C2, h1), R2, PRECISION)
    weight3, bias3 = load_rows(W3, 0, c2, c3, n2, n3), tl.load(b3 + c3, mask=c3 < n3, other=0.0)
    _t3, _g3, h3, d3 = _layer(h2, d2, weight3, bias3, _residual(n2, R3, C2, C3, h2), R3, PRECISION)
    store_rows(value, h3, 0, at, c3, n, n3)
    store_rows(slope, d3, 0, at, c3, n, n3)


@triton.jit
def _undo(v, u, t, g, weight, residual, REPEATS: tl.constexpr, PRECISION: tl.constexpr):
    """From the cotangents v, u of a layer's value and slope: those of p = h W + b, of p' and of what came in."""
    d = 1.0 - t * t
    g_bar = u * d
    p_bar = v * d - 2.0 * t * g * g_bar
    v_in, u_in = dot(p_bar, tl.trans(weight), PRECISION), dot(g_bar, tl.trans(weight), PRECISION)
    if REPEATS > 0:
        v_in += dot(v, tl.trans(residual), PRECISION)
        u_in += dot(u, tl.trans(residual), PRECISION)
    return p_bar, g_bar, v_in, u_in


@triton.jit
def _reverse(
    index, s, types, w, W2, b2, W3, b3, value_bar, slope_bar, s_bar, types_bar, w_bar, W2_bar, b2_bar, W3_bar, b3_bar,
    n, n1, n2, n3, tiles,
    R2: tl.constexpr, R3: tl.constexpr, B: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, C3: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    c1, c2, c3 = tl.arange(0, C1), tl.arange(0, C2), tl.arange(0, C3)
    weight2, bias2 = load_rows(W2, 0, c1, c2, n1, n2), tl.load(b2 + c2, mask=c2 < n2, other=0.0)
    weight3, bias3 = load_rows(W3, 0, c2, c3, n2, n3), tl.load(b3 + c3, mask=c3 < n3, other=0.0)
    residual2, residual3 = _residual(n1, R2, C1, C2, weight2), _residual(n2, R3, C2, C3, weight2)
    sum_w = tl.zeros([C1], dtype=weight2.dtype)
    sum_W2, sum_b2 = tl.zeros([C1, C2], dtype=weight2.dtype), tl.zeros([C2], dtype=weight2.dtype)
    sum_W3, sum_b3 = tl.zeros([C2, C3], dtype=weight2.dtype), tl.zeros([C3], dtype=weight2.dtype)
    for k in range(tiles):
        at = (tl.program_id(0).to(tl.int64) * tiles + k) * B + tl.arange(0, B)
        x, w1, h1, d1 = _first_layer(index, s, types, w, at, n, n1, C1)
        t2, g2, h2, d2 = _layer(h1, d1, weight2, bias2, residual2, R2, PRECISION)
        t3, g3, _h3, d3 = _layer(h2, d2, weight3, bias3, residual3, R3, PRECISION)
        v3, u3 = load_rows(value_bar, 0, at, c3, n, n3), load_rows(slope_bar, 0, at, c3, n, n3)
        p3, q3, v2, u2 = _undo(v3, u3, t3, g3, weight3, residual3, R3, PRECISION)
        sum_W3 += dot(tl.trans(h2), p3, PRECISION) + dot(tl.trans(d2), q3, PRECISION)
        sum_b3 += tl.sum(p3, axis=0)
        p2, q2, v1, u1 = _undo(v2, u2, t2, g2, weight2, residual2, R2, PRECISION)
        sum_W2 += dot(tl.trans(h1), p2, PRECISION) + dot(tl.trans(d1), q2, PRECISION)
        sum_b2 += tl.sum(p2, axis=0)
        d = 1.0 - h1 * h1
        p1 = (v1 - 2.0 * h1 * u1 * w1[None, :]) * d
        sum_w += tl.sum(u1 * d + p1 * x[:, None], axis=0)
        # Both cotangents' way to s, less that of the value, which is known: Ḡ·G'.
        here = tl.sum(p1 * w1[None, :], axis=1) - tl.sum(v3 * d3, axis=1)
        tl.store(s_bar + at, here, mask=at < n)
        store_rows(types_bar, p1, 0, at, c1, n, n1)
    part = tl.program_id(0)
    tl.store(w_bar + part * n1 + c1, sum_w, mask=c1 < n1)
    store_rows(W2_bar, sum_W2, part * n1, c1, c2, n1, n2)
    tl.store(b2_bar + part * n2 + c2, sum_b2, mask=c2 < n2)
    store_rows(W3_bar, sum_W3, part * n2, c2, c3, n2, n3)
    tl.store(b3_bar + part * n3 + c3, sum_b3, mask=c3 < n3)


def _options(W2: Tensor, W3: Tensor, repeats2: int, repeats3: int) -> dict[str, Any]:
    widths = {"C1": padded(W2.shape[0]), "C2": padded(W2.shape[1]), "C3": padded(W3.shape[1])}
    return {"R2": repeats2, "R3": repeats3, "B": tile(W2.dtype), "PRECISION": common.PRECISION, **widths}


@torch.library.custom_op("dpa1::embedding", mutates_args=())
def net(
    index: Tensor, s: Tensor, types: Tensor, w: Tensor, W2: Tensor, b2: Tensor, W3: Tensor, b3: Tensor,
    repeats2: int, repeats3: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """G and dG/ds (P, C) of pairs with s (P,) and row ``index`` (P,) of ``types`` (T, C₁)."""
    index, s, types, w, W2, b2, W3, b3 = dense(index, s, types, w, W2, b2, W3, b3)
    value = s.new_empty(len(s), W3.shape[1])
    slope = torch.empty_like(value)
    if len(s):
        options = _options(W2, W3, repeats2, repeats3)
        sizes = (len(s), *W2.shape, W3.shape[1])
        _forward[(triton.cdiv(len(s), options["B"]),)](
            index, s, types, w, W2, b2, W3, b3, value, slope, *sizes, **options
        )
    return value, slope


@net.register_fake
def _(index, s, types, w, W2, b2, W3, b3, repeats2, repeats3):
    return s.new_empty(s.shape[0], W3.shape[1]), s.new_empty(s.shape[0], W3.shape[1])


@torch.library.custom_op("dpa1::embedding_reverse", mutates_args=())
def reverse(
    value_bar: Tensor, slope_bar: Tensor, index: Tensor, s: Tensor, types: Tensor, w: Tensor, W2: Tensor, b2: Tensor,
    W3: Tensor, b3: Tensor, repeats2: int, repeats3: int,
) -> list[Tensor]:  # fmt: skip
    """Cotangents of s (through the slope only), types, w, W2, b2, W3, b3."""
    given = dense(index, s, types, w, W2, b2, W3, b3, value_bar, slope_bar)
    options = _options(W2, W3, repeats2, repeats3)
    blocks = triton.cdiv(len(s), options["B"])
    tiles = max(1, triton.cdiv(blocks, PROGRAMS))
    programs = triton.cdiv(blocks, tiles)
    s_bar, rows_bar = torch.empty_like(given[1]), s.new_empty(len(s), types.shape[1])
    parts = [s.new_zeros(programs, *x.shape) for x in (w, W2, b2, W3, b3)]
    if len(s):
        sizes = (len(s), *W2.shape, W3.shape[1], tiles)
        _reverse[(programs,)](*given, s_bar, rows_bar, *parts, *sizes, **options)
    types_bar = torch.zeros_like(given[2]).index_add_(0, given[0], rows_bar)
    return [s_bar, types_bar, *(part.sum(0) for part in parts)]


@reverse.register_fake
def _(value_bar, slope_bar, index, s, types, w, W2, b2, W3, b3, repeats2, repeats3):
    return [torch.empty_like(x) for x in (s, types, w, W2, b2, W3, b3)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.repeats = inputs[8:]
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, value_bar: Tensor | None, slope_bar: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, slope = ctx.saved_tensors
    none: tuple[None, ...] = (None,)
    s_bar = None
    rest: Sequence[Tensor | None] = none * 6
    if value_bar is not None and geometry_wanted():
        s_bar = (value_bar * slope).sum(-1)
    if slope_bar is not None or (value_bar is not None and parameters_wanted() and any(ctx.needs_input_grad[2:8])):
        if torch.is_grad_enabled():
            if slope_bar is not None:
                raise NotImplementedError("third derivatives of the fast embedding net; differentiate the reference")
            assert value_bar is not None
            rest = _by_reference(ctx.repeats, inputs, value_bar)
        else:
            given = value_bar if value_bar is not None else slope_bar
            assert given is not None
            bars = [torch.zeros_like(given) if bar is None else bar for bar in (value_bar, slope_bar)]
            through_slope, *rest = reverse(*bars, *inputs, *ctx.repeats)
            if slope_bar is not None and geometry_wanted():
                s_bar = through_slope if s_bar is None else s_bar + through_slope
    return (None, s_bar, *rest, None, None)


def _by_reference(repeats: tuple[int, int], inputs: list[Tensor], value_bar: Tensor) -> list[Tensor | None]:
    """Differentiable gradients of the weights: rarely asked for, so autograd forms them."""
    index, s = inputs[:2]
    near: list[Any] = fresh(inputs[2:])
    types, w, W2, b2, W3, b3 = near
    x = torch.tanh(types[index] + s.unsqueeze(-1) * w)
    x = reference.dense(x, DenseLayer(W2, b2, None, repeats[0]), torch.tanh)
    x = reference.dense(x, DenseLayer(W3, b3, None, repeats[1]), torch.tanh)
    return gradients(x, value_bar, near)


net.register_autograd(_gradient, setup_context=_keep)
