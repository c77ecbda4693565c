"""Every fast path proves itself against the reference, and says so when it does not hold."""

import logging

import pytest
import torch

from dpa1.kernels import dispatch, openblas, proof, reference, wanted
from dpa1.kernels.embedding_net import parts
from dpa1.kernels.nodes import own_grid

CPU_PATHS = [path for path in dispatch.PATHS if path.device == "cpu"]
ELSEWHERE = ("linear", "batched")  # products by OpenBLAS: on AMD processors only


@pytest.mark.parametrize("path", CPU_PATHS, ids=lambda path: path.operation)
def test_proves_itself(path):
    for dtype in path.precisions:
        error = path.error(dtype, "cpu")
        if error is None:
            assert path.operation in ELSEWHERE
            pytest.skip("not for this machine")
        assert error <= proof.TOLERANCE[dtype]
        assert dispatch.holds(path, dtype, "cpu")


@pytest.mark.parametrize(
    "path",
    [path for path in CPU_PATHS if not path.operation.startswith("training_") and path is not dispatch.PAIRS],
    ids=lambda path: path.operation,
)
def test_disagreement_is_loud_and_the_reference_runs(path, monkeypatch, caplog):
    plain = getattr(reference, path.operation)

    def wrong(*arguments):
        result = plain(*arguments)
        return tuple(1.01 * part for part in result) if isinstance(result, tuple) else 1.01 * result

    monkeypatch.setattr(dispatch.import_module(path.module), "run", wrong)
    others = tuple(other for other in dispatch.PATHS if other.operation != path.operation)
    monkeypatch.setattr(dispatch, "PATHS", (*others, path))
    dispatch.proven.cache_clear()
    if path.error(path.precisions[-1], "cpu") is None:
        assert path.operation in ELSEWHERE
        pytest.skip("not for this machine")
    with caplog.at_level(logging.WARNING, logger="dpa1"), openblas.alone():
        for sample in proof.SAMPLES[path.operation](path.precisions[-1]):
            result = sample.call(getattr(dispatch, path.operation), sample.inputs)
            expected = sample.call(plain, sample.inputs)
            parts = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
            if path.operation.startswith("contracted_"):
                # The slower way is made of parts with fast paths of their own: equal but for rounding.
                assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in parts)
            else:
                assert all(torch.equal(a, b) for a, b in parts)
    dispatch.proven.cache_clear()
    assert caplog.text.count("a slower way runs instead") == 1
    assert path.title in caplog.text


@pytest.mark.parametrize(
    ("paths", "usual"),
    [
        ([dispatch.INTERPOLATED], dispatch.embedding),
        ([dispatch.COMPILED_DENSITY, dispatch.DENSITY], dispatch.contracted_embedding),
    ],
    ids=["training_embedding", "training_contraction"],
)
def test_nodes_that_disagree_are_not_used(paths, usual, monkeypatch, caplog):
    """In a training step the net itself is evaluated then."""
    torch.manual_seed(0)
    (operation,) = {path.operation for path in paths}
    (sample,) = proof.SAMPLES[operation](torch.float64)
    exact = getattr(reference, operation)
    for path in paths:
        monkeypatch.setattr(dispatch.import_module(path.module), "run", lambda *arguments: 1.01 * exact(*arguments))
    monkeypatch.setattr("dpa1.kernels.nodes.FIRST", {torch.float64: 64})
    x = [tensor.clone().requires_grad_() for tensor in sample.inputs]
    dispatch.proven.cache_clear()

    def grid(radial, pair, table, layers, *_):
        return own_grid(parts(radial, pair, table, layers), 0)

    with caplog.at_level(logging.WARNING, logger="dpa1"), wanted.training_step(sample.call(grid, x)):
        found = sample.call(usual, x)
    dispatch.proven.cache_clear()
    assert all(path.title in caplog.text for path in paths)
    torch.testing.assert_close(found, sample.call(exact, x), rtol=1e-13, atol=1e-13)


def test_report_lists_every_path():
    lines = dispatch.report("cpu")
    here = [(path, dtype) for path in CPU_PATHS for dtype in path.precisions if path.error(dtype, "cpu") is not None]
    assert len(lines) == len(here)
    assert len({path.operation for path, _ in here}) >= 7
    assert all(line["ok"] for line in lines)


def test_a_number_that_is_none_is_no_agreement():
    """NaN in one derivative only, whatever comes after it."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            return grads[0] * torch.tensor(float("nan"))

    def run(features, rows):
        return reference.contraction(Broken.apply(features), rows)

    assert proof.error("contraction", run, lambda *x: True, torch.float64, "cpu") == float("inf")


def test_the_proof_leaves_no_trace():
    """Neither in the random numbers, nor where gradients are switched off."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        assert CPU_PATHS[0].error(torch.float32, "cpu") <= proof.TOLERANCE[torch.float32]
        assert torch.is_inference_mode_enabled()
    assert torch.equal(before, torch.random.get_rng_state())
