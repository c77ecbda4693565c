"""M = Gᵀ R on a CUDA device. Fast sibling of ``reference.contraction``.

Three products make each other's derivatives, of any order: Gᵀ R (C, 4), R Mᵀ (K, C) and G M (K, 4).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpa1.kernels.gpu.common import dense, load_rows, padded, store_rows

BLOCK = 32  # neighbours or channels of a tile


def supports(features: Tensor, rows: Tensor) -> bool:
    """Environment rows of four numbers."""
    return rows.shape[-1] == 4


def run(features: Tensor, rows: Tensor) -> Tensor:
    """``reference.contraction``, differentiable any number of times."""
    return contract(features, rows)


@triton.jit
def _contract(g, r, out, n, width, B: tl.constexpr, C: tl.constexpr):
    atom = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * C + tl.arange(0, C)
    four = tl.arange(0, 4)
    total = tl.zeros([C, 4], dtype=g.dtype.element_ty)
    for start in range(0, n, B):
        slots = start + tl.arange(0, B)
        x = load_rows(g, atom * n, slots, channels, n, width)
        rows = load_rows(r, atom * n, slots, four, n, 4)
        total += tl.sum(x[:, :, None] * rows[:, None, :], axis=0)
    store_rows(out, total, atom * width, channels, four, width, 4)


@triton.jit
def _spread(r, m, out, n, width, B: tl.constexpr, C: tl.constexpr):
    atom = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * B + tl.arange(0, B)
    channels = tl.arange(0, C)
    total = tl.zeros([B, C], dtype=r.dtype.element_ty)
    for c in range(4):
        x = tl.load(r + (atom * n + slots) * 4 + c, mask=slots < n, other=0.0)
        y = tl.load(m + (atom * width + channels) * 4 + c, mask=channels < width, other=0.0)
        total += x[:, None] * y[None, :]
    store_rows(out, total, atom * n, slots, channels, n, width)


@triton.jit
def _gather(g, m, out, n, width, B: tl.constexpr, C: tl.constexpr):
    atom = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * B + tl.arange(0, B)
    channels = tl.arange(0, C)
    x = load_rows(g, atom * n, slots, channels, n, width)
    for c in range(4):
        y = tl.load(m + (atom * width + channels) * 4 + c, mask=channels < width, other=0.0)
        tl.store(out + (atom * n + slots) * 4 + c, tl.sum(x * y[None, :], axis=1), mask=slots < n)


@torch.library.custom_op("dpa1::contract", mutates_args=())
def contract(g: Tensor, r: Tensor) -> Tensor:
    """Gᵀ R: (N, K, C), (N, K, 4) → (N, C, 4)."""
    g, r = dense(g, r)
    out = g.new_zeros(g.shape[0], g.shape[2], 4)
    if g.numel():
        _contract[(len(g), triton.cdiv(g.shape[2], BLOCK))](g, r, out, g.shape[1], g.shape[2], B=BLOCK, C=BLOCK)
    return out


@torch.library.custom_op("dpa1::spread", mutates_args=())
def spread(r: Tensor, m: Tensor) -> Tensor:
    """R Mᵀ: (N, K, 4), (N, C, 4) → (N, K, C)."""
    r, m = dense(r, m)
    out = r.new_empty(r.shape[0], r.shape[1], m.shape[1])
    if out.numel():
        grid = (len(r), triton.cdiv(r.shape[1], BLOCK))
        _spread[grid](r, m, out, r.shape[1], m.shape[1], B=BLOCK, C=padded(m.shape[1]))
    return out


@torch.library.custom_op("dpa1::gather", mutates_args=())
def gather(g: Tensor, m: Tensor) -> Tensor:
    """G M: (N, K, C), (N, C, 4) → (N, K, 4)."""
    g, m = dense(g, m)
    out = g.new_empty(g.shape[0], g.shape[1], 4)
    if out.numel():
        grid = (len(g), triton.cdiv(g.shape[1], BLOCK))
        _gather[grid](g, m, out, g.shape[1], g.shape[2], B=BLOCK, C=padded(g.shape[2]))
    return out


contract.register_fake(lambda g, r: g.new_empty(g.shape[0], g.shape[2], 4))
spread.register_fake(lambda r, m: r.new_empty(r.shape[0], r.shape[1], m.shape[1]))
gather.register_fake(lambda g, m: g.new_empty(g.shape[0], g.shape[1], 4))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _of_contract(ctx: Any, bar: Tensor) -> tuple[Tensor | None, Tensor | None]:
    g, r = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return spread(r, bar) if wanted[0] else None, gather(g, bar) if wanted[1] else None


def _of_spread(ctx: Any, bar: Tensor) -> tuple[Tensor | None, Tensor | None]:
    r, m = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return gather(bar, m) if wanted[0] else None, contract(bar, r) if wanted[1] else None


def _of_gather(ctx: Any, bar: Tensor) -> tuple[Tensor | None, Tensor | None]:
    g, m = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return spread(bar, m) if wanted[0] else None, contract(g, bar) if wanted[1] else None


contract.register_autograd(_of_contract, setup_context=_keep)
spread.register_autograd(_of_spread, setup_context=_keep)
gather.register_autograd(_of_gather, setup_context=_keep)
