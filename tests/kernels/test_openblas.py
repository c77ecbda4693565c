"""numpy's OpenBLAS is used within ``alone`` only, and has its threads back afterwards."""

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from dpa1.kernels import openblas, products

pytestmark = pytest.mark.skipif(not openblas._suits(), reason="no AMD processor, or numpy without OpenBLAS")


def blas_threads():
    return {library.num_threads for library in ThreadpoolController().select(internal_api="openblas").lib_controllers}


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
