"""Compiled loops: kept on disk where that is possible, and never needed for a result."""

import logging
import sys

import numpy as np
import pytest
import torch

from dpa1 import compiled
from dpa1.batch import make_batch
from dpa1.kernels import dispatch
from tests.contracts.systems import example_options, random_frame, random_potential


@pytest.fixture(autouse=True)
def _fresh():
    compiled.available.cache_clear()
    dispatch.proven.cache_clear()
    yield
    compiled.available.cache_clear()
    dispatch.proven.cache_clear()


def double(x, out):
    for k in range(len(x)):
        out[k] = 2 * x[k]


def test_where_nothing_can_be_kept(monkeypatch):
    import numba

    njit, tried = numba.njit, []

    def unwritable(function, cache=False, **options):
        if function is not double:
            return njit(function, cache=cache, **options)
        tried.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", unwritable)
    x, out = np.arange(3.0), np.zeros(3)
    run = compiled.loops(double)
    run(x, out)
    run(out, out)
    assert tried == [True, False]
    assert out.tolist() == [0.0, 4.0, 8.0]


@pytest.mark.parametrize("layers", [0, 1])
def test_without_numba_the_same_results_by_other_paths(layers, monkeypatch, caplog):
    potential = random_potential(example_options(attention_layers=layers))
    batch = make_batch([random_frame(1, 9), random_frame(2, 5)], potential.cutoff)
    expected = potential.predict(batch)
    compiled.available.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    ran = []
    for path in dispatch.PATHS:
        if "compiled" in path.module:
            monkeypatch.setattr(dispatch.import_module(path.module), "run", lambda *_: ran.append(1))
    with caplog.at_level(logging.WARNING, logger="dpa1"):
        found = potential.predict(batch)
    assert not ran
    assert caplog.text.count("numba cannot be used") == 1
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-11)
