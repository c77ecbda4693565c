"""The environment matrix as one operation with hand-derived first and second derivatives, in few passes through memory.

With r = |v|, d = v/r, i = 1/(r + protection), the switch w and s = w i, the rows are (s, q v), q = s i. Cotangents of the
switch, the rows (ē₀, ē) and the direction go back as

    v̄ = q ē + d (w' w̄ + c₀ ē₀ + c₁ d·ē) + (d̄ − d d·d̄)/r    c₀ = w' i − w i²    c₁ = r (w' i² − 2 w i³),

and the cotangent a of v̄ goes on to them by the same coefficients: w' d·a, c₀ d·a, q a + c₁ d d·a and (a − d d·a)/r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dpa1.kernels import reference
from dpa1.kernels.by_reference import fresh, gradients
from dpa1.kernels.wanted import geometry_wanted

Shape = tuple[torch.dtype, float, float, float]  # precision, start of the switch, cutoff, protection


class Formed(NamedTuple):
    """w, i, q = s i, r (N, K), rows (N, K, 4) and d (N, K, 3)."""

    weight: Tensor
    inverse: Tensor
    factor: Tensor
    distance: Tensor
    rows: Tensor
    direction: Tensor


class Passes(NamedTuple):
    """How all is formed from the vectors, and v̄ from the cotangents, any of which may be missing."""

    forward: Callable[[Shape, Tensor, Tensor], Formed]
    slope: Callable[..., Tensor]


def supports(vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float) -> bool:
    """Everything."""
    return True


def run(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.environment``, differentiable to any order; third derivatives by the reference."""
    return environment(TORCH, vectors, mask, (dtype, start, cutoff, protection))


def environment(passes: Passes, vectors: Tensor, mask: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """The same, by certain passes."""
    out: tuple[Tensor, Tensor, Tensor] = _Environment.apply(passes, shape, vectors, mask)
    return out


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Of vectors (N, K, 3): a sum over so short a last dimension is slow."""
    out = x[..., 0] * y[..., 0]
    return out.addcmul_(x[..., 1], y[..., 1]).addcmul_(x[..., 2], y[..., 2])


class _Environment(torch.autograd.Function):
    """Switch (N, K), rows (N, K, 4), directions (N, K, 3)."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, shape: Shape, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = passes.forward(shape, vectors, mask)
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.shape = passes, shape
        ctx.save_for_backward(vectors, mask, made.inverse, made.factor, made.distance, made.direction)
        return made.weight, made.rows, made.direction

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        slope = _Slope.apply if torch.is_grad_enabled() else ctx.passes.slope
        return None, None, slope(ctx.shape, *cotangents, *ctx.saved_tensors), None


def _formed(shape: Shape, vectors: Tensor, mask: Tensor) -> Formed:
    dtype, start, cutoff, protection = shape
    edge = functional.pad(vectors.new_full((1,), cutoff), (0, 2))
    placed = torch.where(mask.unsqueeze(-1), vectors, edge)
    exact = torch.linalg.vector_norm(placed, dim=-1)
    direction = (placed / exact.unsqueeze(-1)).to(dtype)
    distance = exact.to(dtype)
    weight = reference.switch(distance, start, cutoff).mul_(mask)
    inverse = (distance + protection).reciprocal_()
    rows = weight.new_empty(*mask.shape, 4)
    torch.mul(weight, inverse, out=rows[..., 0])
    factor = rows[..., 0] * inverse
    torch.mul(placed.to(dtype), factor.unsqueeze(-1), out=rows[..., 1:])
    return Formed(weight, inverse, factor, distance, rows, direction)


def _coefficients(shape: Shape, inverse: Tensor, factor: Tensor, distance: Tensor) -> tuple[Tensor, ...]:
    """w', c₀, c₁."""
    _, start, cutoff, _ = shape
    u = ((distance - start) / (cutoff - start)).clamp_(0.0, 1.0)
    slope = u.mul_(1.0 - u).square_().mul_(-30.0 / (cutoff - start))
    first = torch.mul(slope, inverse).sub_(factor)
    return slope, first, (first - factor).mul_(inverse).mul_(distance)


def _slope(
    shape: Shape,
    weight_bar: Tensor | None,
    rows_bar: Tensor | None,
    direction_bar: Tensor | None,
    vectors: Tensor,
    mask: Tensor,
    inverse: Tensor,
    factor: Tensor,
    distance: Tensor,
    direction: Tensor,
) -> Tensor:
    """v̄ (N, K, 3)."""
    slope, radial, along = _coefficients(shape, inverse, factor, distance)
    total = torch.zeros_like(distance) if weight_bar is None else slope * weight_bar
    if rows_bar is not None:
        total.addcmul_(radial, rows_bar[..., 0]).addcmul_(along, _dot(direction, rows_bar[..., 1:]))
    turned: Tensor | None = None
    if direction_bar is not None:
        turned = mask / distance
        total.addcmul_(turned, _dot(direction, direction_bar), value=-1.0)
    out = direction * total.unsqueeze(-1)
    if rows_bar is not None:
        out.addcmul_(factor.unsqueeze(-1), rows_bar[..., 1:])
    if turned is not None and direction_bar is not None:
        out.addcmul_(turned.unsqueeze(-1), direction_bar)
    return out.to(vectors.dtype)


TORCH = Passes(_formed, _slope)


class _Slope(torch.autograd.Function):
    """``_slope``, differentiable by the cotangents; by the vectors, too, where that is wanted."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, *tensors: Any) -> Tensor:
        ctx.shape = shape
        ctx.given = [tensor is not None for tensor in tensors[:3]]
        ctx.save_for_backward(*tensors)
        return _slope(shape, *tensors)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        if geometry_wanted() or torch.is_grad_enabled():
            return _by_reference(ctx.shape, along[0], ctx.saved_tensors)
        _, mask, inverse, factor, distance, direction = ctx.saved_tensors[3:]
        slope, radial, turning = _coefficients(ctx.shape, inverse, factor, distance)
        a = along[0].to(direction.dtype)
        length = _dot(direction, a)
        found: list[Tensor | None] = [None, None, None]
        if ctx.given[0]:
            found[0] = slope.mul_(length)
        if ctx.given[1]:
            rows = distance.new_empty(*distance.shape, 4)
            torch.mul(radial, length, out=rows[..., 0])
            torch.mul(a, factor.unsqueeze(-1), out=rows[..., 1:])
            rows[..., 1:].addcmul_(direction, turning.mul_(length).unsqueeze(-1))
            found[1] = rows
        if ctx.given[2]:
            across = a.addcmul(direction, length.unsqueeze(-1), value=-1.0)
            found[2] = across.mul_((mask / distance).unsqueeze(-1))
        return None, *found, *(None,) * 6


def _by_reference(shape: Shape, along: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The same and the derivative by the vectors, by autograd."""
    with torch.enable_grad():
        near: list[Any] = fresh(saved[:4])
        *cotangents, vectors = near
        values = reference.environment(vectors, saved[4], *shape)
        pairs = [(value, bar) for value, bar in zip(values, cotangents, strict=True) if bar is not None]
        (found,) = gradients([value for value, _ in pairs], [bar for _, bar in pairs], [vectors])
        assert found is not None
        return None, *gradients(found, along, near), *(None,) * 5
