"""The fast embedding net equals its reference: values, first and second derivatives; other nets are left to the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpa1.kernels import embedding, embedding_net, proof, reference
from dpa1.kernels.reference import DenseLayer


def net(seed, atoms, slots, kinds, types, widths, dtype=torch.float64):
    """A random net on random pairs; without ``types`` the distance is its only input."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pair = torch.randint(0, kinds, (atoms, slots), generator=generator)
    sizes = list(zip([1 + types, *widths[:-1]], widths, strict=True))
    inputs = [draw(atoms, slots), *([draw(kinds, types)] if types else [])]
    inputs += [x for a, b in sizes for x in (draw(a, b) / a**0.5, draw(b))]

    def call(run, x):
        first = 2 if types else 1
        layers = [
            DenseLayer(x[first + 2 * k], x[first + 2 * k + 1], None, b // a if k and b in (a, 2 * a) else 0)
            for k, (a, b) in enumerate(sizes)
        ]
        return run(x[0], pair if types else None, x[1] if types else None, layers, torch.tanh)

    return proof.Sample(inputs, 1, call)


WIDTHS = st.sampled_from([(3,), (4, 8), (3, 5, 5), (2, 4, 8), (5, 4, 4, 8)])


@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 6), st.integers(1, 7), st.integers(0, 4), WIDTHS)
def test_equals_reference(seed, atoms, slots, kinds, types, widths):
    sample = net(seed, atoms, slots, kinds, types, widths)
    before, embedding_net.FEW = embedding_net.FEW, 4  # both ways of summing rows
    try:
        fast = proof.derivatives(embedding.run, sample, sample.inputs)
    finally:
        embedding_net.FEW = before
    for a, b in zip(fast, proof.derivatives(reference.embedding, sample, sample.inputs), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("types", [0, 3])
def test_gradgradcheck(types):
    """Against finite differences, weights included: first derivatives of first derivatives by everything."""
    sample = net(1, 2, 2, 3, types, (2, 4))
    inputs = [x.clone().requires_grad_() for x in sample.inputs]
    assert torch.autograd.gradcheck(lambda *x: sample.call(embedding.run, x), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: sample.call(embedding.run, x), inputs)


def test_second_derivatives_by_position_alone():
    sample = net(2, 2, 3, 3, 2, (3, 6, 6))

    def energy(run, s):
        return sample.call(run, [s, *sample.inputs[1:]]).square().sum()

    fast, plain = (
        torch.autograd.functional.hessian(lambda s, run=run: energy(run, s), sample.inputs[0])
        for run in (embedding.run, reference.embedding)
    )
    assert float(plain.abs().max()) > 0.1
    assert torch.allclose(fast, plain, rtol=1e-10, atol=1e-10)


def test_float32_error_is_that_of_the_reference():
    """Both are compared with float64; the fast one may be at most twice as far off (plus one rounding)."""
    rounded = net(3, 8, 40, 4, 4, (10, 20, 40), torch.float32)
    exact = proof.derivatives(reference.embedding, rounded, [x.double() for x in rounded.inputs])
    fast = proof.derivatives(embedding.run, rounded, rounded.inputs)
    plain = proof.derivatives(reference.embedding, rounded, rounded.inputs)
    for e, f, p in zip(exact, fast, plain, strict=True):
        scale = float(e.abs().max())
        assert float((f - e).abs().max()) <= 2 * float((p - e).abs().max()) + 1e-6 * scale


def test_other_nets_are_left_to_the_reference():
    weight, bias = torch.ones(1, 2), torch.ones(2)

    def supported(layer, activation=torch.tanh):
        return embedding.supports(torch.ones(1, 1), None, None, [layer], activation)

    assert supported(DenseLayer(weight, bias, None, 0))
    assert not supported(DenseLayer(weight, bias, None, 0), torch.sigmoid)
    assert not supported(DenseLayer(weight, None, None, 0))
    assert not supported(DenseLayer(weight, bias, bias, 0))
    assert not supported(DenseLayer(weight, bias, None, 2))
