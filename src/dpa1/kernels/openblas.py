"""Matrix products by an OpenBLAS of our own, in the calling thread.

The library behind torch's own products leaves half of the registers of AMD processors unused. The OpenBLAS of the package
scipy-openblas64 takes half to two thirds of its time there, for stacks of small matrices, too. It works on one thread; those
of the model work on blocks of atoms (``dpa1.model.threads``).
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger("dpa1")
BUFFERED = 256  # rows and columns of a product that is no special case
LEAST = 1 << 15  # multiplications of one matrix; below, the call costs more than it brings
# CBLAS: the result's rows lie one after the other; a factor as it is, or transposed.
ROWS, PLAIN, TURNED = 101, 111, 112


class _State:
    lock = threading.Lock()
    inside = 0  # contexts entered and not left, in all threads
    limits: Any = None


@contextmanager
def alone() -> Iterator[None]:
    """Inside, each thread forms the model's products by itself, and numpy's run on one thread.

    Waking numpy's threads for small products takes a hundred times as long where other programs are busy.
    """
    with _State.lock:
        if _State.inside == 0 and (numpy := _numpy()) is not None:
            _State.limits = numpy.limit(limits=1)
        _State.inside += 1
    try:
        yield
    finally:
        with _State.lock:
            _State.inside -= 1
            if _State.inside == 0 and _State.limits is not None:
                _State.limits.restore_original_limits()


@cache
def _numpy() -> Any:
    """The OpenBLAS that numpy uses, or None."""
    from threadpoolctl import ThreadpoolController

    np.ones((2, 2)) @ np.ones((2, 2))  # whatever numpy uses is loaded now
    found = ThreadpoolController().select(internal_api="openblas")
    return found if any("numpy" in library.filepath for library in found.lib_controllers) else None


@cache
def _library() -> dict[torch.dtype, tuple[Any, Any]] | None:
    """For each precision the products of two matrices and of two stacks; None without an AMD processor or the package."""
    if not _is_amd():
        return None
    found = find_spec("scipy_openblas64")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in Path(folder, "lib").glob("libscipy_openblas64_*.so*")]
    if not files:
        log.debug("matrix products: torch's own, since the package scipy-openblas64 is not installed")
        return None
    try:
        with _environment(OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE=None):
            library = ctypes.CDLL(str(files[0]))
        library.scipy_openblas_set_num_threads64_(1)
        return {
            torch.float32: _declared(library, "s", ctypes.c_float),
            torch.float64: _declared(library, "d", ctypes.c_double),
        }
    except (OSError, AttributeError) as error:
        log.warning(
            "%s cannot be used for matrix products (%s): torch's own, which are slower, run instead", files[0], error
        )
        return None


@cache
def reserve() -> None:
    """Let the library take its working memory: without memory at its first product it would end the process."""
    if _library() is not None:
        square = torch.ones(BUFFERED, BUFFERED)
        multiply(square, square)


def _declared(library: Any, name: str, number: Any) -> tuple[Any, Any]:
    whole, place = ctypes.c_int64, ctypes.c_void_p
    one = getattr(library, f"scipy_cblas_{name}gemm64_")
    many = getattr(library, f"scipy_cblas_{name}gemm_batch_strided64_")
    sizes = [ctypes.c_int] * 3 + [whole] * 3
    one.argtypes = [*sizes, number, place, whole, place, whole, number, place, whole]
    many.argtypes = [*sizes, number, *([place, whole, whole] * 2), number, place, whole, whole, whole]
    one.restype = many.restype = None
    return one, many


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@contextmanager
def _environment(**wanted: str | None) -> Iterator[None]:
    """Inside, some variables, which OpenBLAS reads once while it is loaded, are as wanted."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def worthwhile(a: Tensor, b: Tensor) -> bool:
    """Whether a·b (…, i, j)·(…, j, k) is for this path: here, inside ``alone``, and large enough."""
    return (
        _State.inside > 0
        and a.shape[-2] * a.shape[-1] * b.shape[-1] >= LEAST
        and a.device.type == "cpu"
        and a.dtype == b.dtype
        and a.dtype in (torch.float32, torch.float64)
        and _library() is not None
    )


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """a·b (+ bias) of matrices or of stacks of them, into ``out`` where it is given; records no gradients."""
    a, how_a, lead_a = _layout(a)
    b, how_b, lead_b = _layout(b)
    if out is None:
        out = a.new_empty(*a.shape[:-1], b.shape[-1])
    assert out.stride(-1) == 1
    if bias is not None:
        out.copy_(bias.expand_as(out))
    products = _library()
    assert products is not None
    one, many = products[a.dtype]
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    kept = 0.0 if bias is None else 1.0
    sizes = (ROWS, how_a, how_b, rows, columns, inner, 1.0)
    if a.dim() == 2:
        one(*sizes, a.data_ptr(), lead_a, b.data_ptr(), lead_b, kept, out.data_ptr(), out.stride(0))
    elif len(a):
        factors = (a.data_ptr(), lead_a, a.stride(0), b.data_ptr(), lead_b, b.stride(0))
        many(*sizes, *factors, kept, out.data_ptr(), out.stride(1), out.stride(0), len(a))
    return out


def _layout(x: Tensor) -> tuple[Tensor, int, int]:
    """x, or a copy of it, as BLAS takes it: transposed or not, and the distance of its rows or columns."""
    rows, columns = x.shape[-2:]
    down, right = x.stride()[-2:]
    if right == 1 and down >= columns:
        return x, PLAIN, down
    if down == 1 and right >= rows:
        return x, TURNED, right
    return x.contiguous(), PLAIN, columns


def supports(a: Tensor, b: Tensor) -> bool:
    """Stacks of matrices of which each product is worthwhile."""
    return a.dim() == 3 and worthwhile(a, b)


def run(a: Tensor, b: Tensor) -> Tensor:
    """``reference.batched``, differentiable to any order."""
    y: Tensor = _Batched.apply(a, b)
    return y


class _Batched(torch.autograd.Function):
    """a·b of stacks of matrices."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return multiply(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _Batched.apply(grads[0], b.transpose(1, 2)), _Batched.apply(a.transpose(1, 2), grads[0])
