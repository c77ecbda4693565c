"""Comparing a fast path with the reference on tiny systems: values, first and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import openblas, reference, wanted
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, DenseLayer, Keys, Lookup

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


@dataclass(frozen=True)
class Sample:
    """Differentiable inputs, the first ``geometry`` of which depend on positions, and how an operation is called on them.

    ``training``: only the derivatives that a training step asks for are compared.
    """

    inputs: list[Tensor]
    geometry: int
    call: Callable[[Callable[..., Any], list[Tensor]], Any]
    training: bool = False


def error(
    operation: str, run: Callable[..., Any], supports: Callable[..., bool], dtype: torch.dtype, device: str
) -> float | None:
    """Largest difference from the reference over the samples it supports, relative to the largest value of each result.

    None: it supports none of them here.

    The reference runs in float64 and from the same, already rounded inputs.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), openblas.alone():
        torch.manual_seed(0)
        samples = [sample for sample in SAMPLES[operation](dtype) if sample.call(supports, sample.inputs)]
    worst = 0.0
    for sample in samples:
        with openblas.alone():
            fast = derivatives(run, sample, [x.to(device) for x in sample.inputs])
        exact = derivatives(getattr(reference, operation), sample, [x.to(device).double() for x in sample.inputs])
        for a, b in zip(fast, exact, strict=True):
            difference = float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-6))
            worst = max(worst, float("inf") if math.isnan(difference) else difference)
    return worst if samples else None


def derivatives(run: Callable[..., Any], sample: Sample, inputs: list[Tensor]) -> list[Tensor]:
    """Values; first derivatives by all inputs; first by geometry alone, and the second ones by everything."""
    with torch.inference_mode(False), torch.enable_grad(), wanted.everything():
        x = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        out = sample.call(run, x)
        values = list(out) if isinstance(out, tuple) else [out]
        along = [_directions(v, k).requires_grad_() for k, v in enumerate(values)]
        whole = torch.autograd.grad(values, x, along, retain_graph=True, materialize_grads=True)
        with wanted.geometry_only():
            first = torch.autograd.grad(values, x[: sample.geometry], along, create_graph=True, materialize_grads=True)
        phi = torch.stack([(_directions(f, 7 + k) * f).sum() for k, f in enumerate(first)]).sum()
        # Energies join, as they do in a loss: both ways to the weights end in one pass.
        phi = phi + torch.stack([(v * _directions(v, 3)).sum() for v in values]).sum()
        asked = [] if sample.training else [*along, *x]
        second = torch.autograd.grad(phi, asked, retain_graph=True, materialize_grads=True) if asked else ()
        with wanted.parameters_only():
            # The cotangents depend on the weights of what follows.
            training = torch.autograd.grad(phi, [*along, *x[sample.geometry :]], materialize_grads=True)
    return [t.detach() for t in (*values, *whole, *first, *second, *training)]


def _directions(like: Tensor, seed: int) -> Tensor:
    """A fixed tensor of the same shape, the same on every device and in every precision."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(like.shape, generator=generator) - 0.3).to(like)


def _environments(dtype: torch.dtype) -> Iterator[Sample]:
    mask = torch.rand(3, 5) > 0.2
    vectors = torch.randn(3, 5, 3, dtype=torch.float64) * 2.0
    for protection in (0.0, 0.3):

        def call(run: Callable[..., Any], x: list[Tensor], protection: float = protection) -> Any:
            # The reference is called with float64 inputs only, a path in the precision it is tried in.
            precision = torch.float64 if run is reference.environment else dtype
            return run(x[0], mask.to(x[0].device), precision, 1.0, 4.0, protection)

        yield Sample([vectors], 1, call)


def _embeddings(dtype: torch.dtype) -> Iterator[Sample]:
    pair = torch.randint(0, 4, (3, 5))
    deep, usual = [3, 6, 6, 5], [3, 6, 12]
    for types, timestep, hidden in ((3, False, deep), (0, True, deep), (0, False, deep), (3, False, usual)):
        widths = [1 + types, *hidden]
        shapes: list[tuple[int, ...]] = [(3, 5), (4, types)] if types else [(3, 5)]
        for n_in, n_out in pairwise(widths):
            shapes += [(n_in, n_out), (n_out,)] + ([(n_out,)] if timestep and n_out != 3 and n_out != 5 else [])

        def call(
            run: Callable[..., Any],
            x: list[Tensor],
            types: int = types,
            timestep: bool = timestep,
            widths: Any = widths,
        ) -> Any:
            rest = list(x[2:] if types else x[1:])
            layers = []
            for n_in, n_out in pairwise(widths):
                repeats = n_out // n_in if n_out in (n_in, 2 * n_in) else 0
                weight, bias = rest.pop(0), rest.pop(0)
                layers.append(DenseLayer(weight, bias, rest.pop(0) if timestep and repeats else None, repeats))
            if not types:
                return run(x[0], None, None, layers, torch.tanh)
            return run(x[0], pair.to(x[0].device), x[1], layers, torch.tanh)

        yield Sample([torch.randn(shape, dtype=dtype) for shape in shapes], 1, call)


def _fittings(dtype: torch.dtype) -> Iterator[Sample]:
    for timestep, widths in ((False, (7, 9, 9, 18, 5)), (True, (6, 6, 12))):
        repeats = [n_out // n_in if n_out in (n_in, 2 * n_in) else 0 for n_in, n_out in pairwise(widths)]
        shapes: list[tuple[int, ...]] = [(4, widths[0])]
        for (n_in, n_out), again in zip(pairwise(widths), repeats, strict=True):
            shapes += [(n_in, n_out), (n_out,)] + ([(n_out,)] if timestep and again else [])

        def call(
            run: Callable[..., Any], x: list[Tensor], timestep: bool = timestep, repeats: list[int] = repeats
        ) -> Any:
            rest = x[1:-2]
            layers = [
                DenseLayer(rest.pop(0), rest.pop(0), rest.pop(0) if timestep and again else None, again)
                for again in repeats
            ]
            return run(x[0], layers, DenseLayer(x[-2], x[-1], None, 0), torch.tanh)

        inputs = [torch.randn(shape, dtype=dtype) for shape in (*shapes, (widths[-1], 1), (1,))]
        yield Sample(inputs, 1, call)


def _training_embeddings(dtype: torch.dtype) -> Iterator[Sample]:
    pair = torch.randint(0, 4, (40, 30))
    shapes = [(40, 30), (4, 3), (4, 3), (3,), (3, 6), (6,), (6, 12), (12,)]

    def call(run: Callable[..., Any], x: list[Tensor]) -> Any:
        layers = [DenseLayer(x[k], x[k + 1], None, repeats) for k, repeats in ((2, 0), (4, 2), (6, 2))]
        return run(x[0], pair.to(x[0].device), x[1], layers, torch.tanh)

    inputs = [torch.rand(shapes[0], dtype=dtype), *(torch.randn(shape, dtype=dtype) for shape in shapes[1:])]
    yield Sample(inputs, 1, call, training=True)


def _contracted_embeddings(dtype: torch.dtype, of: Callable[..., Iterator[Sample]] = _embeddings) -> Iterator[Sample]:
    for sample in of(dtype):

        def call(run: Callable[..., Any], x: list[Tensor], call: Callable[..., Any] = sample.call) -> Any:
            return call(lambda *arguments: run(*arguments, x[1]), [x[0], *x[2:]])

        rows = torch.randn(*sample.inputs[0].shape, 4, dtype=dtype)
        yield Sample([sample.inputs[0], rows, *sample.inputs[1:]], 2, call, sample.training)


def _training_contractions(dtype: torch.dtype) -> Iterator[Sample]:
    return _contracted_embeddings(dtype, _training_embeddings)


def make_keys(kind: str, weight: Tensor, direction: Tensor | None) -> Keys:
    """Of the three kinds the model knows; weight (N, K) holds zeros where a slot is empty."""
    ones = torch.ones_like(weight[:, 0])
    if kind == "smooth":
        return Keys(weight, weight, None, direction, ones)
    mask = (weight > 0).to(weight.dtype)
    if kind == "scaled":
        return Keys(mask, weight, weight, direction, 3.0 * ones, -20.0, scaled=True)
    return Keys(mask, mask, mask, direction, ones - mask.amax(-1))


def _attentions(dtype: torch.dtype) -> Iterator[Sample]:
    slots, width = 5, 4
    weight = torch.rand(3, slots, dtype=dtype) * (torch.arange(slots) < 4)
    for kind in ("smooth", "scaled", "plain"):
        inputs = [weight, torch.randn(3, slots, 3, dtype=dtype)]
        inputs += [torch.rand(3, slots, width, dtype=dtype) for _ in range(3)]

        def call(run: Callable[..., Any], x: list[Tensor], kind: str = kind) -> Any:
            return run(*x[2:], make_keys(kind, x[0], x[1]), True)

        yield Sample(inputs, 5, call)


def _layers(dtype: torch.dtype) -> Iterator[Sample]:
    slots, channels, width = 5, 6, 4
    weight = torch.rand(3, slots, dtype=dtype) * (torch.arange(slots) < 4)
    shapes = [(channels, 3 * width), (3 * width,), (width, channels), (channels,), (channels,), (channels,)]
    for kind in ("smooth", "scaled", "plain"):
        inputs = [torch.randn(3, slots, channels, dtype=dtype), weight, torch.randn(3, slots, 3, dtype=dtype)]
        inputs += [torch.randn(shape, dtype=dtype) for shape in shapes]

        def call(run: Callable[..., Any], x: list[Tensor], kind: str = kind) -> Any:
            keys = make_keys(kind, x[1], x[2])
            return run(x[0], keys, AttentionWeights(*x[3:]), AttentionOptions(True, 0.7, 1e-5))

        yield Sample(inputs, 3, call)


def _sums(dtype: torch.dtype) -> Iterator[Sample]:
    inputs = [torch.randn(7, 3, dtype=dtype), torch.randn(7, 3, dtype=dtype)]
    where = [torch.tensor(values) for values in ((0, 0, 1, 1, 2, 4, 4), (1, 2, 0, 0, 0, 3, 3), (0, 0, 0, 1, 1))]
    yield Sample(inputs, 2, lambda run, x: run(*x, *(value.to(x[0].device) for value in where), 2))


def _projected(dtype: torch.dtype) -> Iterator[Sample]:
    slots, channels, width = 5, 6, 4
    weight = torch.rand(3, slots, dtype=dtype) * (torch.arange(slots) < 4)
    shapes = [(channels, 3 * width), (3 * width,), (width, channels), (channels,), (channels,), (channels,)]
    constants = [torch.randn(shape, dtype=dtype) for shape in shapes]
    for kind in ("smooth", "scaled", "plain"):
        inputs = [torch.randn(3, slots, channels, dtype=dtype)]
        inputs += [torch.rand(3, slots, width, dtype=dtype) for _ in range(3)]
        inputs += [weight, torch.randn(3, slots, 3, dtype=dtype)]

        def call(run: Callable[..., Any], x: list[Tensor], kind: str = kind) -> Any:
            weights = AttentionWeights(*(constant.to(x[0]) for constant in constants))
            return run(*x[:4], make_keys(kind, x[4], x[5]), weights, AttentionOptions(True, 0.7, 1e-5))

        yield Sample(inputs, 6, call)


def _splines(dtype: torch.dtype) -> Iterator[Sample]:
    row = torch.randint(0, 4, (3, 5))
    tables = [torch.randn(10, channels, dtype=dtype) for channels in (6, 3)]

    def call(run: Callable[..., Any], x: list[Tensor]) -> Any:
        return run(x[0], row.to(x[0].device), tuple(table.to(x[0]) for table in tables))

    yield Sample([torch.rand(3, 5, dtype=dtype)], 1, call)


def _contracted_splines(dtype: torch.dtype) -> Iterator[Sample]:
    row, table = torch.randint(0, 4, (3, 5)), torch.randn(10, 6, dtype=dtype)

    def call(run: Callable[..., Any], x: list[Tensor]) -> Any:
        return run(x[0], row.to(x[0].device), table.to(x[0]), x[1])

    yield Sample([torch.rand(3, 5, dtype=dtype), torch.randn(3, 5, 4, dtype=dtype)], 2, call)


def _tabulated_pairs(dtype: torch.dtype) -> Iterator[Sample]:
    vectors = torch.randn(9, 3, dtype=torch.float64) + 0.6
    ends, centre = torch.tensor([4, 4, 9]), torch.tensor([1, 0, 1])
    neighbor = torch.randint(0, 2, (9,))
    statistics = [torch.tensor(values) for values in ((0.1, 0.3), (0.7, 1.2), (0.4, 0.9))]
    grid = [torch.tensor(values) for values in ((3.0, 4.0, 5.0, 6.0), (2.0, 3.0, 1.5, 2.5), (60.0, 50.0, 40.0, 55.0))]
    row, table = torch.tensor([0, 70, 130, 180]), torch.randn(240, 6)
    for centred in (True, False):

        def call(run: Callable[..., Any], x: list[Tensor], centred: bool = centred) -> Any:
            precision = torch.float64 if run is reference.tabulated_pairs else dtype
            where = [value.to(x[0].device) for value in (ends, centre, neighbor)]

            def cast(values: list[Tensor]) -> list[Tensor]:
                return [value.to(precision) for value in values]

            lookup = Lookup(1.0, 4.0, 0.01, *cast(statistics), centred, *cast(grid), row, table.to(precision))  # type: ignore[call-arg, arg-type]
            return run(x[0], *where, lookup)

        yield Sample([vectors], 1, call)


def _contractions(dtype: torch.dtype) -> Iterator[Sample]:
    inputs = [torch.randn(3, 5, 6, dtype=dtype), torch.randn(3, 5, 4, dtype=dtype)]
    yield Sample(inputs, 2, lambda run, x: run(*x))


def _descriptors(dtype: torch.dtype) -> Iterator[Sample]:
    for width in (0, 3):
        inputs = [torch.randn(3, 6, 4, dtype=dtype), *([torch.randn(3, width, dtype=dtype)] if width else [])]
        yield Sample(inputs, 1, lambda run, x: run(x[0], 2, x[1] if len(x) > 1 else None))


def _products(dtype: torch.dtype) -> Iterator[Sample]:
    # As large as oneDNN is used for, and odd.
    for biased in (True, False):
        inputs = [torch.randn(shape, dtype=dtype) for shape in ((61, 37), (37, 53), *([(53,)] if biased else []))]
        yield Sample(inputs, 1, lambda run, x: run(x[0], x[1], x[2] if len(x) > 2 else None))


def _batches(dtype: torch.dtype) -> Iterator[Sample]:
    for turned in (False, True):
        shapes = ((3, 61, 37), (3, 53, 37)) if turned else ((3, 61, 37), (3, 37, 53))
        inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]

        def call(run: Callable[..., Any], x: list[Tensor], turned: bool = turned) -> Any:
            return run(x[0], x[1].transpose(1, 2) if turned else x[1])

        yield Sample(inputs, 2, call)


SAMPLES: dict[str, Callable[[torch.dtype], Iterator[Sample]]] = {
    "linear": _products,
    "batched": _batches,
    "environment": _environments,
    "embedding": _embeddings,
    "fitting": _fittings,
    "training_embedding": _training_embeddings,
    "training_contraction": _training_contractions,
    "contracted_embedding": _contracted_embeddings,
    "contracted_spline": _contracted_splines,
    "gated_attention": _attentions,
    "attention_layer": _layers,
    "tabulated_pairs": _tabulated_pairs,
    "contraction": _contractions,
    "descriptor_product": _descriptors,
    "pair_sums": _sums,
    "projected_layer": _projected,
    "spline": _splines,
}
