"""The fused attention equals its reference: values, first and second derivatives; and says so when it does not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.kernels import attention, reference
from dpa1.kernels.reference import Keys


class _Keys(Keys):
    """Keys whose gate is an input of its own."""

    gate = None

    def __init__(self, weight, gate, null):
        super().__init__(weight, weight, None, None, null)
        object.__setattr__(self, "gate", gate)


def fast_attention(query, key, value, weight, gate, null):
    return attention.run(query, key, value, _Keys(weight, gate, null), True)


def reference_attention(query, key, value, weight, gate, null):
    return reference.gated_attention(query, key, value, _Keys(weight, gate, null), True)


def derivatives(operation, inputs, cotangent, along, null):
    """y, its first derivatives along ``cotangent`` and the second ones along ``along``."""
    x = [tensor.clone().requires_grad_() for tensor in inputs]
    y_bar = cotangent.clone().requires_grad_()
    y = operation(*x, null)
    first = torch.autograd.grad(y, x, y_bar, create_graph=True)
    phi = sum((a * b).sum() for a, b in zip(along, first, strict=True))
    return [y.detach(), *(f.detach() for f in first), *torch.autograd.grad(phi, [y_bar, *x])]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 60, 10**6]))
def test_equals_reference(seed, atoms, slots, width, chunk):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = [(atoms, slots, width)] * 3 + [(atoms, slots), (atoms, slots, slots)]
    inputs = [draw(*shape) for shape in shapes]
    # Weights are never negative, and padded slots have weight and gate zero.
    inputs[3] = inputs[3].abs() * (draw(atoms, slots) > -0.5)
    inputs[4] = inputs[4] * (inputs[3] > 0).unsqueeze(-2)
    along = [draw(*shape) for shape in shapes]
    arguments = (inputs, draw(atoms, slots, width), along, torch.ones(atoms, dtype=torch.float64))
    before, attention.CHUNK_ELEMENTS = attention.CHUNK_ELEMENTS, chunk
    try:
        fast = derivatives(fast_attention, *arguments)
    finally:
        attention.CHUNK_ELEMENTS = before
    for a, b in zip(fast, derivatives(reference_attention, *arguments), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


def test_gradcheck():
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, 2)] * 3 + [(2, 3), (2, 3, 3)]
    inputs = [torch.rand(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    null = torch.ones(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: fast_attention(*x, null), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: fast_attention(*x, null), inputs)


def test_float32_error_is_that_of_the_reference():
    """Both are compared with float64; the fused one may be at most twice as far off (plus one rounding)."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(4, 60, 32)] * 3 + [(4, 60), (4, 60, 60)]
    inputs = [torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes]
    inputs[0], inputs[1] = inputs[0] / 6, inputs[1] / 6
    along = [torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes]
    cotangent, null = torch.rand(shapes[0], generator=generator, dtype=torch.float64), torch.ones(4)
    exact = derivatives(reference_attention, inputs, cotangent, along, null.double())
    single = [[t.float() for t in inputs], cotangent.float(), [t.float() for t in along], null]
    fast = derivatives(fast_attention, *single)
    plain = derivatives(reference_attention, *single)
    for e, f, p in zip(exact, fast, plain, strict=True):
        scale = float(e.abs().max())
        assert float((f - e).abs().max()) <= 2 * float((p - e).abs().max()) + 1e-6 * scale


@pytest.mark.parametrize("null", [0.0, 1.0])
def test_unbounded_scores_of_any_size_stay_finite(null):
    """Huge scores in empty slots and far negative ones of real keys: finite values and derivatives, the exact limit."""
    scores = torch.tensor([[[-900.0, -901.0, 5000.0]] * 3], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[[1.0], [3.0], [7.0]]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    gate = weight.unsqueeze(-2).expand(1, 3, 3)
    out = reference.attend(scores, value, weight, gate, torch.tensor([null], dtype=torch.float64), 0.0, False)
    (slope,) = torch.autograd.grad(out.sum(), scores)
    e = float(torch.exp(torch.tensor(-1.0, dtype=torch.float64)))
    expected = 0.0 if null else (1.0 + 3.0 * e) / (1.0 + e)
    assert torch.allclose(out, torch.full_like(out, expected), rtol=1e-14)
    assert torch.isfinite(slope).all()
    assert bool((slope[..., 2] == 0).all())
