"""Switch, environment matrix and directions of pairs on a CUDA device. Fast sibling of ``reference.environment``.

With r = |x|, q = 1/(r + p), the radial functions h = sw·q and b = sw·q², and a bar for cotangents:

    x̄ = d·α + R̄ᵥ·b + (d̄ − d (d·d̄))/r,   α = s̄w·sw' + R̄₀·h' + (R̄ᵥ·x)·b'

The double backward pass is the derivative of the outputs and of this line along the cotangent of x̄. All in float64, as
the distances of the reference. Numbers of the model are compiled in: as arguments Triton would round them to float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpa1.kernels.gpu.common import dense

BLOCK = 128  # pairs of one program


def supports(vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float) -> bool:
    """float64 vectors, as the model forms them."""
    return vectors.dtype == torch.float64


def run(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.environment``, twice differentiable."""
    weight, rows, direction = environment(vectors, mask, dtype, start, cutoff, protection)
    return weight, rows, direction


@triton.jit
def _pair(x, mask, at, n, cutoff):
    inside = (at < n) & (tl.load(mask + at, mask=at < n, other=0) != 0)
    # An empty slot sits at the cutoff.
    a = tl.where(inside, tl.load(x + at * 3, mask=at < n, other=0.0), cutoff)
    b = tl.where(inside, tl.load(x + at * 3 + 1, mask=at < n, other=0.0), 0.0)
    c = tl.where(inside, tl.load(x + at * 3 + 2, mask=at < n, other=0.0), 0.0)
    return inside, a, b, c, tl.sqrt(a * a + b * b + c * c)


@triton.jit
def _radial(r, inside, start, cutoff, protection):
    """sw, h, b and their first and second derivatives."""
    u = tl.minimum(tl.maximum((r - start) / (cutoff - start), 0.0), 1.0)
    # Not tl.where of two numbers: that would be float32.
    scale = inside.to(tl.float64) * (1.0 / (cutoff - start))
    s = tl.where(inside, 1.0 + u * u * u * (u * (15.0 - 6.0 * u) - 10.0), 0.0)
    s1 = -30.0 * u * u * (u * (u - 2.0) + 1.0) * scale
    s2 = -60.0 * u * (u * (2.0 * u - 3.0) + 1.0) * scale * scale
    q = 1.0 / (r + protection)
    h1 = s1 * q - s * q * q
    h2 = s2 * q - 2.0 * s1 * q * q + 2.0 * s * q * q * q
    b1 = s1 * q * q - 2.0 * s * q * q * q
    b2 = s2 * q * q - 4.0 * s1 * q * q * q + 6.0 * s * q * q * q * q
    return s, s1, s2, s * q, h1, h2, s * q * q, b1, b2


@triton.jit
def _forward(
    x, mask, weight, rows, direction, n,
    start: tl.constexpr, cutoff: tl.constexpr, protection: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, a, b, c, r = _pair(x, mask, at, n, cutoff)
    s, _s1, _s2, h, _h1, _h2, g, _g1, _g2 = _radial(r, inside, start, cutoff, protection)
    real = at < n
    tl.store(weight + at, s, mask=real)
    tl.store(rows + at * 4, h, mask=real)
    tl.store(rows + at * 4 + 1, a * g, mask=real)
    tl.store(rows + at * 4 + 2, b * g, mask=real)
    tl.store(rows + at * 4 + 3, c * g, mask=real)
    tl.store(direction + at * 3, a / r, mask=real)
    tl.store(direction + at * 3 + 1, b / r, mask=real)
    tl.store(direction + at * 3 + 2, c / r, mask=real)


@triton.jit
def _number(pointer, at, n):
    return tl.load(pointer + at, mask=at < n, other=0.0).to(tl.float64)


@triton.jit
def _cotangent(
    x, mask, weight_bar, rows_bar, direction_bar, x_bar, along, weight_t, rows_t, direction_t, n,
    start: tl.constexpr, cutoff: tl.constexpr, protection: tl.constexpr, TANGENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, a, b, c, r = _pair(x, mask, at, n, cutoff)
    _s, s1, s2, _h, h1, h2, g, g1, g2 = _radial(r, inside, start, cutoff, protection)
    real = at < n
    w = _number(weight_bar, at, n)
    k, ka, kb, kc = (
        tl.load(rows_bar + at * 4, mask=real, other=0.0).to(tl.float64),
        tl.load(rows_bar + at * 4 + 1, mask=real, other=0.0).to(tl.float64),
        tl.load(rows_bar + at * 4 + 2, mask=real, other=0.0).to(tl.float64),
        tl.load(rows_bar + at * 4 + 3, mask=real, other=0.0).to(tl.float64),
    )
    ea = tl.load(direction_bar + at * 3, mask=real, other=0.0).to(tl.float64)
    eb = tl.load(direction_bar + at * 3 + 1, mask=real, other=0.0).to(tl.float64)
    ec = tl.load(direction_bar + at * 3 + 2, mask=real, other=0.0).to(tl.float64)
    da, db, dc = a / r, b / r, c / r
    kx = ka * a + kb * b + kc * c
    ed = ea * da + eb * db + ec * dc
    alpha = w * s1 + k * h1 + kx * g1
    if not TANGENT:
        tl.store(x_bar + at * 3, tl.where(inside, da * alpha + ka * g + (ea - da * ed) / r, 0.0), mask=real)
        tl.store(x_bar + at * 3 + 1, tl.where(inside, db * alpha + kb * g + (eb - db * ed) / r, 0.0), mask=real)
        tl.store(x_bar + at * 3 + 2, tl.where(inside, dc * alpha + kc * g + (ec - dc * ed) / r, 0.0), mask=real)
    else:
        ta = tl.where(inside, tl.load(along + at * 3, mask=real, other=0.0), 0.0)
        tb = tl.where(inside, tl.load(along + at * 3 + 1, mask=real, other=0.0), 0.0)
        tc = tl.where(inside, tl.load(along + at * 3 + 2, mask=real, other=0.0), 0.0)
        rt = da * ta + db * tb + dc * tc
        dta, dtb, dtc = (ta - da * rt) / r, (tb - db * rt) / r, (tc - dc * rt) / r
        tl.store(weight_t + at, s1 * rt, mask=real)
        tl.store(rows_t + at * 4, h1 * rt, mask=real)
        tl.store(rows_t + at * 4 + 1, ta * g + a * g1 * rt, mask=real)
        tl.store(rows_t + at * 4 + 2, tb * g + b * g1 * rt, mask=real)
        tl.store(rows_t + at * 4 + 3, tc * g + c * g1 * rt, mask=real)
        tl.store(direction_t + at * 3, dta, mask=real)
        tl.store(direction_t + at * 3 + 1, dtb, mask=real)
        tl.store(direction_t + at * 3 + 2, dtc, mask=real)
        alpha_t = rt * (w * s2 + k * h2 + kx * g2) + (ka * ta + kb * tb + kc * tc) * g1
        edt = ea * dta + eb * dtb + ec * dtc
        xa = dta * alpha + da * alpha_t + ka * g1 * rt
        xb = dtb * alpha + db * alpha_t + kb * g1 * rt
        xc = dtc * alpha + dc * alpha_t + kc * g1 * rt
        xa -= (dta * ed + da * edt) / r + (ea - da * ed) * rt / (r * r)
        xb -= (dtb * ed + db * edt) / r + (eb - db * ed) * rt / (r * r)
        xc -= (dtc * ed + dc * edt) / r + (ec - dc * ed) * rt / (r * r)
        tl.store(x_bar + at * 3, xa, mask=real)
        tl.store(x_bar + at * 3 + 1, xb, mask=real)
        tl.store(x_bar + at * 3 + 2, xc, mask=real)


def _outputs(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(), (4,), (3,)]
    return [torch.empty(*x.shape[:-1], *shape, dtype=dtype, device=x.device) for shape in shapes]


@torch.library.custom_op("dpa1::environment", mutates_args=())
def environment(
    x: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> list[Tensor]:
    """Switch (N, K), rows (N, K, 4) and unit vectors (N, K, 3) of x (N, K, 3) Å."""
    x, mask = dense(x, mask)
    out = _outputs(x, dtype)
    if mask.numel():
        grid = (triton.cdiv(mask.numel(), BLOCK),)
        _forward[grid](x, mask.view(torch.uint8), *out, mask.numel(), start, cutoff, protection, BLOCK=BLOCK)
    return out


@environment.register_fake
def _(x, mask, dtype, start, cutoff, protection):
    return _outputs(x, dtype)


@torch.library.custom_op("dpa1::environment_backward", mutates_args=())
def backward(bars: list[Tensor], x: Tensor, mask: Tensor, start: float, cutoff: float, protection: float) -> Tensor:
    """x̄ (N, K, 3)."""
    x, mask, *bars = dense(x, mask, *bars)
    out = torch.empty_like(x)
    if mask.numel():
        grid = (triton.cdiv(mask.numel(), BLOCK),)
        flags = mask.view(torch.uint8)
        _cotangent[grid](
            x, flags, *bars, out, x, *bars, mask.numel(), start, cutoff, protection, TANGENT=False, BLOCK=BLOCK
        )
    return out


@backward.register_fake
def _(bars, x, mask, start, cutoff, protection):
    return torch.empty_like(x)


@torch.library.custom_op("dpa1::environment_double_backward", mutates_args=())
def double_backward(
    along: Tensor, bars: list[Tensor], x: Tensor, mask: Tensor, start: float, cutoff: float, protection: float
) -> list[Tensor]:
    """Cotangents of ``bars`` and of x."""
    x, mask, along, *bars = dense(x, mask, along, *bars)
    out = [*(torch.empty_like(bar) for bar in bars), torch.empty_like(x)]
    if mask.numel():
        grid = (triton.cdiv(mask.numel(), BLOCK),)
        flags = mask.view(torch.uint8)
        _cotangent[grid](
            x, flags, *bars, out[3], along, *out[:3], mask.numel(), start, cutoff, protection, TANGENT=True, BLOCK=BLOCK
        )
    return out


@double_backward.register_fake
def _(along, bars, x, mask, start, cutoff, protection):
    return [*(torch.empty_like(bar) for bar in bars), torch.empty_like(x)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.scalars, ctx.dtype = inputs[3:], inputs[2]


def _first(ctx: Any, bars: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    x, mask = ctx.saved_tensors
    given = [like.zero_() if bar is None else bar for bar, like in zip(bars, _outputs(x, ctx.dtype), strict=True)]
    return backward(given, x, mask, *ctx.scalars), None, None, None, None, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bars, *rest = inputs
    ctx.save_for_backward(*bars, *rest[:2])
    ctx.scalars = rest[2:]


def _second(ctx: Any, along: Tensor) -> tuple[Any, ...]:
    *bars, x, mask = ctx.saved_tensors
    *of_bars, of_x = double_backward(along, bars, x, mask, *ctx.scalars)
    return of_bars, of_x, None, None, None, None


environment.register_autograd(_first, setup_context=_keep)
backward.register_autograd(_second, setup_context=_keep_first)
