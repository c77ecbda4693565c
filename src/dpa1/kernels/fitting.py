"""The fitting net as one operation with hand-derived first and second derivatives.

With h₀ = x, layers p = h W + b, t = tanh p, h' = t∘τ + (h, or h twice, or nothing), and an energy e = h·w + c, a cotangent ē
goes back as

    g = ē w   u = g∘τ∘(1 − t²)   ḡ = u Wᵀ + (g folded)                 g of the last layer first; x̄ = ḡ of the first

and the second derivative differentiates Φ = ⟨a, x̄⟩ by what x̄ is made of, a being carried forward:

    z = a W   a' = z∘τ∘(1 − t²) + (a, or a twice)   W̄ = aᵀ u   t̄ = −2 t∘g∘τ∘z   w̄ = ēᵀ a'

The activations t are outputs of the forward function, so autograd carries their cotangents to its backward, where one pass
serves the loss's dependence on the energies and on the forces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.by_reference import fresh, gradients
from dpa1.kernels.embedding_net import tanh_
from dpa1.kernels.products import product
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.wanted import parameters_wanted

_through_tanh = torch.ops.aten.tanh_backward  # g (1 − t²)


def supports(
    x: Tensor, layers: Sequence[DenseLayer], output: DenseLayer, activation: Callable[[Tensor], Tensor]
) -> bool:
    """tanh and a bias everywhere, some layers, one number per atom."""
    biased = all(layer.bias is not None for layer in (*layers, output))
    return activation is torch.tanh and biased and bool(layers) and output.weight.shape[1] == 1 and x.dim() == 2


def run(x: Tensor, layers: Sequence[DenseLayer], output: DenseLayer, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """``reference.fitting``, twice differentiable."""
    kinds = tuple((layer.repeats, layer.timestep is not None) for layer in layers)
    weights = [tensor for layer in (*layers, output) for tensor in layer[:3] if tensor is not None]
    energy: Tensor = _Forward.apply(kinds, x, *weights)[0]
    return energy


Kinds = tuple[tuple[int, bool], ...]  # of each layer: how often its input is added, whether it has a timestep


def _layers(kinds: Kinds, weights: Sequence[Tensor]) -> tuple[list[DenseLayer], Tensor, Tensor]:
    """The hidden layers, and the weight (C, 1) and bias (1,) of the output."""
    rest, layers = iter(weights), []
    for repeats, timestep in kinds:
        layers.append(DenseLayer(next(rest), next(rest), next(rest) if timestep else None, repeats))
    return layers, next(rest), next(rest)


def _added(h: Tensor, y: Tensor, repeats: int) -> Tensor:
    """y plus h, or h twice side by side."""
    if repeats == 0:
        return y
    return y + (h if repeats == 1 else torch.cat([h, h], -1))


def _folded(g: Tensor, h_bar: Tensor, repeats: int) -> Tensor:
    """The cotangent h̄ plus what g leaves to h; changes h̄."""
    if repeats == 1:
        h_bar.add_(g)
    elif repeats == 2:
        for half in g.chunk(2, -1):
            h_bar.add_(half)
    return h_bar


def _timed(x: Tensor, timestep: Tensor | None) -> Tensor:
    return x if timestep is None else x * timestep


class _Forward(torch.autograd.Function):
    """Energies (N,) and the activations t of every layer."""

    @staticmethod
    def forward(ctx: Any, kinds: Kinds, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        layers, last, constant = _layers(kinds, weights)
        inputs, activations = [x], []
        for layer in layers:
            t = tanh_(product(inputs[-1], layer.weight, layer.bias))
            activations.append(t)
            inputs.append(_added(inputs[-1], _timed(t, layer.timestep), layer.repeats))
        ctx.set_materialize_grads(False)
        ctx.kinds = kinds
        ctx.save_for_backward(*inputs, *activations, *weights)
        return torch.addmv(constant, inputs[-1], last.squeeze(1)), *activations

    @staticmethod
    def backward(ctx: Any, energy_bar: Tensor | None, *extra: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():
            x_bar, *weights = _reverse(ctx.kinds, energy_bar, extra, saved, ctx.needs_input_grad[1])[0]
            return None, x_bar, *weights
        if any(t is not None for t in extra):
            raise NotImplementedError("third derivatives of the fast fitting net; differentiate the reference")
        assert energy_bar is not None
        if parameters_wanted():
            return None, *_by_reference(ctx.kinds, energy_bar, saved)
        return None, _Backward.apply(ctx.kinds, energy_bar, *saved), *(None,) * (len(ctx.needs_input_grad) - 2)


def _split(kinds: Kinds, saved: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Inputs of every layer and of the output, activations, weights."""
    n = len(kinds)
    return saved[: n + 1], saved[n + 1 : 2 * n + 1], saved[2 * n + 1 :]


def _reverse(
    kinds: Kinds, energy_bar: Tensor | None, extra: Sequence[Tensor | None], saved: Sequence[Tensor], to_x: bool
) -> tuple[list[Tensor | None], list[tuple[Tensor, Tensor]]]:
    """Cotangents of x and of all weights, where they are wanted; and (g, u) of every layer.

    energy_bar (N,), extra: cotangents of the energies and of the activations.
    """
    inputs, activations, weights = _split(kinds, saved)
    layers, last, _ = _layers(kinds, weights)
    wanted = parameters_wanted()
    g = torch.zeros_like(inputs[-1]) if energy_bar is None else torch.outer(energy_bar, last.squeeze(1))
    of_weights: list[Tensor | None] = [None, None]
    if wanted and energy_bar is not None:
        of_weights = [torch.mv(inputs[-1].t(), energy_bar).unsqueeze(1), energy_bar.sum().unsqueeze(0)]
    kept: list[tuple[Tensor, Tensor]] = []
    for k in reversed(range(len(layers))):
        layer, h, t = layers[k], inputs[k], activations[k]
        t_bar, more = _timed(g, layer.timestep), extra[k] if extra else None
        u = _through_tanh(t_bar if more is None else t_bar + more, t)
        kept.append((g, u))
        if wanted:
            of_timestep = [] if layer.timestep is None else [(g * t).sum(0)]
            of_weights = [product(h.t(), u), u.sum(0), *of_timestep, *of_weights]
        if k or to_x:
            g = _folded(g, product(u, layer.weight.t()), layer.repeats)
    return [g if to_x else None, *(of_weights if wanted else [None] * len(weights))], kept[::-1]


class _Backward(torch.autograd.Function):
    """x̄ from ē."""

    @staticmethod
    def forward(ctx: Any, kinds: Kinds, energy_bar: Tensor, *saved: Tensor) -> Tensor:
        (x_bar, *_), kept = _reverse(kinds, energy_bar, (), saved, True)
        ctx.kinds = kinds
        ctx.save_for_backward(energy_bar, *(tensor for pair in kept for tensor in pair), *saved)
        assert x_bar is not None
        return x_bar

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        kinds, n = ctx.kinds, len(ctx.kinds)
        energy_bar, *rest = ctx.saved_tensors
        kept = list(pairwise(rest[: 2 * n]))[::2]
        inputs, activations, weights = _split(kinds, rest[2 * n :])
        layers, last, _ = _layers(kinds, weights)
        wanted = parameters_wanted()
        a = along[0].contiguous()
        of_activations: list[Tensor | None] = []
        of_weights: list[Tensor | None] = []
        for layer, t, (g, u) in zip(layers, activations, kept, strict=True):
            z = product(a, layer.weight)
            if wanted:
                through = _through_tanh(z, t)
                of_timestep = [] if layer.timestep is None else [(through * g).sum(0)]
                of_weights += [product(a.t(), u), None, *of_timestep]
            timed = _timed(z, layer.timestep)
            a = _added(a, _through_tanh(timed, t), layer.repeats)
            of_activations.append(timed.mul_(t).mul_(g).mul_(-2.0))
        energy_bar2 = torch.mv(a, last.squeeze(1))
        of_output = [torch.mv(a.t(), energy_bar).unsqueeze(1), None] if wanted else [None, None]
        of_weights = of_weights if wanted else [None] * (len(weights) - 2)
        return None, energy_bar2, *(None,) * len(inputs), *of_activations, *of_weights, *of_output


def _by_reference(kinds: Kinds, energy_bar: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Differentiable gradients of everything, weights included: rarely asked for, so autograd forms them."""
    inputs, _, weights = _split(kinds, saved)
    near: list[Any] = fresh((inputs[0], *weights))
    layers, last, constant = _layers(kinds, near[1:])
    energy = reference.fitting(near[0], layers, DenseLayer(last, constant, None, 0), torch.tanh)
    return tuple(gradients(energy, energy_bar, near))
