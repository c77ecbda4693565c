"""The fast attention layer equals its reference: values, first and second derivatives, in every convention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.kernels import attention, proof, reference
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, Keys

KINDS = st.sampled_from(["smooth", "scaled", "plain"])


def layer(seed, atoms, slots, channels, width, kind, gate=True, temperature=0.3, dtype=torch.float64):
    """A random layer on random rows; padded slots have weight zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight = draw(atoms, slots).abs() * (draw(atoms, slots) > -0.5)
    shapes = [(channels, 3 * width), (3 * width,), (width, channels), (channels,), (channels,), (channels,)]
    direction = torch.nn.functional.normalize(draw(atoms, slots, 3), dim=-1)
    inputs = [draw(atoms, slots, channels), weight, direction, *(draw(*shape) for shape in shapes)]

    def call(run, x):
        keys = proof.make_keys(kind, x[1], x[2] if gate else None)
        return run(x[0], keys, AttentionWeights(*x[3:]), AttentionOptions(True, temperature, 1e-5))

    return proof.Sample(inputs, 3, call)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(2, 7), st.integers(1, 6), KINDS,
    st.booleans(), st.sampled_from([0.1, 1.0, 5.0]),
)  # fmt: skip
def test_equals_reference(seed, atoms, slots, channels, width, kind, gate, temperature):
    sample = layer(seed, atoms, slots, channels, width, kind, gate, temperature)
    fast = proof.derivatives(attention.run, sample, sample.inputs)
    plain = proof.derivatives(reference.attention_layer, sample, sample.inputs)
    assert any(float(b.abs().max()) > 0.1 for b in plain)
    for a, b in zip(fast, plain, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", ["smooth", "scaled", "plain"])
def test_gradgradcheck(kind):
    """Against finite differences, weights included: first derivatives of first derivatives by everything."""
    sample = layer(1, 2, 3, 3, 2, kind)
    inputs = [x.clone().requires_grad_(k != 1) for k, x in enumerate(sample.inputs)]
    inputs[1] = inputs[1].detach() + 0.5 * (inputs[1] > 0)  # away from the edge where a slot empties
    assert torch.autograd.gradcheck(lambda *x: sample.call(attention.run, x), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: sample.call(attention.run, x), inputs)


def test_second_derivatives_by_position_alone():
    """As for phonons: the weights are frozen."""
    sample = layer(2, 2, 4, 5, 3, "smooth")

    def energy(run, x, weight, direction):
        return sample.call(run, [x, weight, direction, *sample.inputs[3:]]).square().sum()

    hessians = [
        torch.autograd.functional.hessian(lambda *x, run=run: energy(run, *x), tuple(sample.inputs[:3]))
        for run in (attention.run, reference.attention_layer)
    ]
    for fast, plain in zip(*hessians, strict=True):
        for a, b in zip(fast, plain, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-9)


def test_float32_error_is_that_of_the_reference():
    """Both are compared with float64; the fast one may be at most twice as far off (plus one rounding)."""
    rounded = layer(2, 4, 60, 20, 32, "smooth", temperature=0.2, dtype=torch.float32)
    exact = proof.derivatives(reference.attention_layer, rounded, [x.double() for x in rounded.inputs])
    fast = proof.derivatives(attention.run, rounded, rounded.inputs)
    plain = proof.derivatives(reference.attention_layer, rounded, rounded.inputs)
    for e, f, p in zip(exact, fast, plain, strict=True):
        scale = float(e.abs().max())
        assert float((f - e).abs().max()) <= 2 * float((p - e).abs().max()) + 1e-6 * scale


def test_without_unit_length_the_reference_runs():
    options = AttentionOptions(False, 0.1, 1e-5)
    sample = layer(3, 1, 2, 3, 2, "smooth")
    keys = Keys(sample.inputs[1], sample.inputs[1], None, None, torch.ones(1))
    assert not attention.supports(sample.inputs[0], keys, AttentionWeights(*sample.inputs[3:]), options)


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
