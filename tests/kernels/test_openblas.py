"""OpenBLAS is used within ``alone`` only, where numpy has one thread; numpy has its threads back afterwards."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from dpa1.kernels import openblas, products

pytestmark = pytest.mark.skipif(openblas._library() is None, reason="no AMD processor, or without scipy-openblas64")


def blas_threads():
    found = ThreadpoolController().select(internal_api="openblas").lib_controllers
    return {library.num_threads for library in found if "numpy" in library.filepath}


def test_no_variable_decides():
    """One thread, and the kernels that OpenBLAS chooses for the processor, whatever the environment says; it is left alone."""
    script = """
import os
from threadpoolctl import ThreadpoolController
from dpa1.kernels import openblas
before = dict(os.environ)
assert openblas._library() is not None and dict(os.environ) == before
loaded = [x for x in ThreadpoolController().lib_controllers if "/scipy_openblas64/" in x.filepath]
print(*{(mine.architecture, mine.num_threads) for mine in loaded})
"""
    names = ("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    run = [
        subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
        for env in (plain, plain | dict(zip(names, ("5", "Prescott"), strict=True)))
    ]
    assert run[0] == run[1]
    assert run[0].endswith(", 1)\n")


def test_threads_come_back():
    before = blas_threads()
    with openblas.alone():
        assert blas_threads() == {1}
        with openblas.alone():
            pass
        assert blas_threads() == {1}
        entered, leave = threading.Event(), threading.Event()

        def work():
            with openblas.alone():
                entered.set()
                leave.wait()

        other = threading.Thread(target=work)
        other.start()
        entered.wait()
    assert blas_threads() == {1}  # the other thread is still inside
    leave.set()
    other.join()
    assert blas_threads() == before


def test_only_inside_and_only_what_is_large():
    large, small = torch.rand(3, 64, 64), torch.rand(3, 4, 4)
    assert not openblas.worthwhile(large, large)
    with openblas.alone():
        assert openblas.worthwhile(large, large)
        assert not openblas.worthwhile(small, small)
        assert not openblas.worthwhile(large, large.double())


def test_strided_factors_and_results():
    """Parts of wider matrices, as queries, keys and values are."""
    x = torch.rand(4, 40, 3 * 48, dtype=torch.float64)
    q, k, v = x.chunk(3, dim=-1)
    out = torch.zeros_like(x)
    with openblas.alone():
        scores = products.batched(q, k.transpose(1, 2))
        for part in out.chunk(3, dim=-1):
            products.batched(scores.transpose(1, 2), v, part)
    expected = torch.bmm(torch.bmm(q, k.transpose(1, 2)).transpose(1, 2), v)
    np.testing.assert_allclose(out.numpy(), expected.repeat(1, 1, 3).numpy(), rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout(dtype):
    """Turned, wide, repeated and empty factors; with a bias."""
    rng = torch.Generator().manual_seed(1)
    a, b = torch.rand(40, 50, dtype=dtype, generator=rng), torch.rand(50, 60, dtype=dtype, generator=rng)
    wide, bias = torch.rand(40, 90, dtype=dtype, generator=rng)[:, 7:57], torch.rand(60, dtype=dtype, generator=rng)
    apart = torch.rand(80, 100, dtype=dtype, generator=rng)[::2, ::2]
    for x in (a, wide, a.t().contiguous().t(), apart, a[:1].expand(40, 50)):
        for y in (b, b.t().contiguous().t()):
            torch.testing.assert_close(openblas.multiply(x, y, bias=bias), x @ y + bias)
    stack = a.expand(3, 40, 50)
    torch.testing.assert_close(openblas.multiply(stack, b.expand(3, 50, 60)), (a @ b).expand(3, 40, 60))
    assert openblas.multiply(stack[:0], b.expand(0, 50, 60)).shape == (0, 40, 60)
