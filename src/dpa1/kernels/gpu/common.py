"""What all Triton kernels share: products in the precision of their operands, tanh, tile sizes, whether there is Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISION = "ieee"  # of float32 products; TF32 would miss the error budget of forces


@triton.jit
def dot(a: Any, b: Any, PRECISION: tl.constexpr) -> Any:
    """Matrix product that keeps float64."""
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def tanh(x: Any) -> Any:
    """From exp of a negative number, so that nothing overflows."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    # Near zero the quotient has lost digits that the series still has; the error of both is below 1e-15 at the seam.
    y = x * x
    series = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    return tl.where(tl.abs(x) < 0.02, series, tl.where(x < 0, -t, t))


@triton.jit
def load_rows(pointer: Any, base: Any, rows: Any, columns: Any, n: Any, width: Any) -> Any:
    """Tile (rows, columns) of a row-major matrix with ``n`` rows of ``width`` that begins at row ``base``; zeros outside."""
    where = (base + rows[:, None]) * width + columns[None, :]
    return tl.load(pointer + where, mask=(rows[:, None] < n) & (columns[None, :] < width), other=0.0)


@triton.jit
def store_rows(pointer: Any, value: Any, base: Any, rows: Any, columns: Any, n: Any, width: Any) -> None:
    """Counterpart of ``load_rows``."""
    where = (base + rows[:, None]) * width + columns[None, :]
    tl.store(pointer + where, value, mask=(rows[:, None] < n) & (columns[None, :] < width))


def padded(width: int) -> int:
    """The power of two a tile of this width has; products of tiles need at least 16."""
    return max(16, triton.next_power_of_2(width))


def tile(dtype: torch.dtype) -> int:
    """Rows of a tile: what registers hold beside 128 columns."""
    return 16 if dtype == torch.float64 else 32


def dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous versions; kernels address row-major memory."""
    return tuple(tensor.contiguous() for tensor in tensors)
