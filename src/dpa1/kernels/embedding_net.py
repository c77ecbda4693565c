"""The embedding net as one operation that forms its features G and their derivative G' by the distance together.

h₁ = tanh(s w + t[pair])   h₁' = (1 − h₁²) w     h = tanh(p) + (h, h)   h' = (1 − tanh²p) p'   p = h W + b   p' = h' W
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.by_reference import fresh, gradients
from dpa1.kernels.products import product
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import geometry_wanted, parameters_wanted

AT_ONCE = 2048  # pairs, where nothing is kept for a second derivative
FEW = 64  # rows of a table up to which a product with an indicator matrix sums faster than indexed addition


class Parts(NamedTuple):
    """Of a net on pairs: s (P,), row of each ``pair`` (P,) in ``types`` (T, C₁), the ``repeats`` of the further layers, and
    ``weights``: w (C₁,), then W and b of each further layer."""

    s: Tensor
    pair: Tensor | None
    types: Tensor
    repeats: tuple[int, ...]
    weights: tuple[Tensor, ...]


def supports(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> bool:
    """tanh, a bias everywhere, no learned timestep, no residual around the first layer."""
    plain = all(layer.bias is not None and layer.timestep is None for layer in layers)
    return activation is torch.tanh and plain and layers[0].repeats == 0


def parts(radial: Tensor, pair: Tensor | None, table: Tensor | None, layers: Sequence[DenseLayer]) -> Parts:
    """The arguments of ``reference.embedding`` so that the types' share of the first layer is formed once per row."""
    first, *others = layers
    assert first.bias is not None
    types = first.bias.unsqueeze(0) if table is None else torch.addmm(first.bias, table, first.weight[1:])
    further = [tensor for layer in others for tensor in (layer.weight, layer.bias) if tensor is not None]
    repeats = tuple(layer.repeats for layer in others)
    index = None if pair is None else pair.reshape(-1)
    return Parts(radial.reshape(-1), index, types, repeats, (first.weight[0], *further))


class Attach(torch.autograd.Function):
    """Makes G depend on s: its gradient is Ḡ·G', formed by autograd's own operations, so it is differentiable again."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        along = (cotangents[0] * slope).sum(-1) if geometry_wanted() else None
        return along, cotangents[0], None


class Net(torch.autograd.Function):
    """(G, G') of all pairs, differentiable once. G's own dependence on s is left to ``Attach``."""

    @staticmethod
    def forward(
        ctx: Any,
        repeats: tuple[int, ...],
        derive: bool,
        index: Tensor | None,
        s: Tensor,
        types: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.repeats, ctx.light = repeats, not parameters_wanted()
        if ctx.light:
            # Nothing is kept, so a few pairs at a time stay in the processor's cache.
            width = types.shape[1] if not repeats else weights[-1].shape[0]
            out = s.new_empty(1 + derive, len(s), width)
            for start in range(0, len(s), AT_ONCE):
                some = slice(start, start + AT_ONCE)
                rows = types if index is None else types[index[some]]
                out[:, some] = evaluate(repeats, derive, s[some], rows, weights)[-1]
            return out[0], out[1] if derive else None
        kept = evaluate(repeats, derive, s, types if index is None else types[index], weights)
        # The last h is the result itself; the way back needs it only where it is the first as well.
        ctx.save_for_backward(index, s, types, *weights, *(kept[:-1] if repeats else kept))
        return kept[-1][0], kept[-1][1] if derive else None

    @staticmethod
    def backward(ctx: Any, value_bar: Tensor | None, slope_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        n = 1 + 2 * len(ctx.repeats)
        if ctx.light:
            assert slope_bar is None, "evaluated for first derivatives by position alone"
            return (None,) * (5 + n)
        index, s, types, *rest = ctx.saved_tensors
        weights, kept = rest[:n], rest[n:]
        if torch.is_grad_enabled():
            if not parameters_wanted() and slope_bar is None:
                return (None,) * (5 + n)
            if slope_bar is not None:
                raise NotImplementedError("third derivatives of the fast embedding net; differentiate the reference")
            assert value_bar is not None
            near = _by_reference(ctx.repeats, index, s, types, weights, value_bar)
            return (None, None, None, None, *near)
        if slope_bar is None and (value_bar is None or not parameters_wanted()):
            return (None,) * (5 + n)
        return (None, None, None, *_reverse(ctx.repeats, index, s, types, weights, kept, value_bar, slope_bar))


def evaluate(
    repeats: tuple[int, ...], derive: bool, s: Tensor, rows: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """h of the first layer, then p and h of every other one: values [0] and, to ``derive``, derivatives by s [1]."""
    h = s.new_empty(1 + derive, len(s), rows.shape[1])
    tanh_(torch.addcmul(rows, s.unsqueeze(-1), weights[0], out=h[0]))
    if derive:
        torch.mul(_slope(h[0]), weights[0], out=h[1])
    kept = [h]
    for k, times in enumerate(repeats):
        weight, bias = weights[1 + 2 * k], weights[2 + 2 * k]
        p = product(h.flatten(0, 1), weight).view(len(h), len(s), -1)
        t = tanh_(p[0].add_(bias))
        out = torch.empty_like(p)
        if derive:
            torch.mul(_slope(t), p[1], out=out[1])
        previous, h = h, out
        h[0] = t
        if times:
            wide = h.unflatten(-1, (times, -1))
            wide += previous.unsqueeze(-2)
        kept += [p, h]
    return kept


def tanh_(x: Tensor) -> Tensor:
    """tanh in place, as 2σ(2x) − 1: torch's logistic function is eight times as fast as its tanh."""
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def _slope(t: Tensor) -> Tensor:
    """1 − t²."""
    return torch.addcmul(torch.ones((), dtype=t.dtype), t, t, value=-1)


def _reverse(
    repeats: tuple[int, ...],
    index: Tensor | None,
    s: Tensor,
    types: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    value_bar: Tensor | None,
    slope_bar: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of s (through G' only), the types' rows and the weights."""
    given = value_bar if value_bar is not None else slope_bar
    assert given is not None
    derive = slope_bar is not None
    h_bar = given.new_empty(1 + derive, len(s), given.shape[1])
    for k, bar in enumerate((value_bar, slope_bar)[: len(h_bar)]):
        h_bar[k] = 0.0 if bar is None else bar
    gradients: list[Tensor | None] = [None] * len(weights)
    for k in reversed(range(len(repeats))):
        h, p = kept[2 * k], kept[1 + 2 * k]
        t = p[0]
        d = _slope(t)
        p_bar = h_bar * d
        if derive:
            # h' = (1 − t²) p' depends on p through t as well.
            p_bar[0].sub_((t * p[1]).mul_(p_bar[1]).mul_(2.0))
        flat = p_bar.flatten(0, 1)
        gradients[1 + 2 * k] = product(h[: len(p_bar)].flatten(0, 1).t(), flat)
        gradients[2 + 2 * k] = p_bar[0].sum(0)
        below = product(flat, weights[1 + 2 * k].t()).view(len(p_bar), len(s), -1)
        for part in h_bar.unflatten(-1, (repeats[k], -1)).unbind(-2) if repeats[k] else ():
            below += part
        h_bar = below
    t, w = kept[0][0], weights[0]
    d = _slope(t)
    p_bar = h_bar[0]
    w_bar = p_bar.new_zeros(len(w))
    if derive:
        slopes = d * h_bar[1]
        w_bar += slopes.sum(0)
        p_bar = p_bar.addcmul(t, h_bar[1] * w, value=-2.0)
    p_bar = p_bar * d
    w_bar += torch.mv(p_bar.t(), s)
    gradients[0] = w_bar
    s_bar = None
    if geometry_wanted() and derive:
        # Both cotangents' way to s, less Ḡ·G' of the first, which belongs to ``Attach``.
        s_bar = torch.mv(p_bar, w)
        if value_bar is not None:
            s_bar -= (value_bar * _final_slope(repeats, weights, kept)).sum(-1)
    return [s_bar, _sum_rows(p_bar, index, types), *gradients]


def _final_slope(repeats: tuple[int, ...], weights: list[Tensor], kept: list[Tensor]) -> Tensor:
    """G' again from the last layer's p; only second derivatives by position ask for it."""
    if not repeats:
        return kept[0][1]
    h, p = kept[-2], kept[-1]
    slope = _slope(p[0]) * p[1]
    return slope + h[1].repeat(1, repeats[-1]) if repeats[-1] else slope


def _sum_rows(x: Tensor, index: Tensor | None, types: Tensor) -> Tensor:
    """Sum of the rows of x that came from each row of ``types``."""
    if index is None:
        return x.sum(0, keepdim=True)
    if len(types) <= FEW:
        indicator = torch.zeros(len(types), len(x), dtype=x.dtype).scatter_(0, index.unsqueeze(0), 1.0)
        return indicator @ x
    return torch.zeros_like(types).index_add_(0, index, x)


def _by_reference(
    repeats: tuple[int, ...],
    index: Tensor | None,
    s: Tensor,
    types: Tensor,
    weights: list[Tensor],
    value_bar: Tensor,
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients of the weights: rarely asked for, so autograd forms them."""
    near: list[Any] = fresh((types, *weights))
    rows = near[0] if index is None else near[0][index]
    x = torch.tanh(rows + s.unsqueeze(-1) * near[1])
    for k, times in enumerate(repeats):
        x = reference.dense(x, DenseLayer(near[2 + 2 * k], near[3 + 2 * k], None, times), torch.tanh)
    return tuple(gradients(x, value_bar, near))
