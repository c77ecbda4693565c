"""Dense layers, embedding nets and fitting nets as DPA-1 uses them (weights are (n_in, n_out))."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpa1.kernels import dispatch, embedding, reference
from dpa1.kernels.nodes import Grid
from dpa1.kernels.reference import DenseLayer


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind an activation's name (``gelu`` is the tanh approximation, ``silut[:T]`` a tamed SiLU)."""
    base, _, threshold = name.partition(":")
    if base in ("silut", "custom_silu"):
        return Silut(float(threshold or 3.0))
    return {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "relu6": functional.relu6,
        "softplus": functional.softplus,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "gelu": _gelu,
        "gelu_tf": _gelu,
        "linear": _identity,
        "none": _identity,
    }[name]


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _identity(x: Tensor) -> Tensor:
    return x


class Silut:
    """silu(x) below T; above, tanh(slope·(x − T)) + silu(T) with the slope of silu at T."""

    def __init__(self, threshold: float) -> None:
        sigmoid = 1.0 / (1.0 + math.exp(-threshold))
        self.threshold = threshold
        self.value = threshold * sigmoid
        self.slope = sigmoid * (1.0 + threshold * (1.0 - sigmoid))

    def __call__(self, x: Tensor) -> Tensor:
        above = torch.tanh(self.slope * (x - self.threshold)) + self.value
        return torch.where(x < self.threshold, functional.silu(x), above)


class Dense(nn.Module):
    """y = φ(x·w + b) ∘ timestep, plus x (or [x, x]) where ``residual`` and the widths allow it.

    The timestep exists only where a residual is added. Initial values follow DeePMD-kit's distributions:
    w ~ N(0, 1/(n_in + n_out)), b ~ N(0, 1), timestep ~ N(0.1, 0.001).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: str,
        *,
        bias: bool = True,
        residual: bool = False,
        timestep: bool = False,
    ) -> None:
        super().__init__()
        self.repeats = n_out // n_in if residual and n_out in (n_in, 2 * n_in) else 0
        self.activation = activation_function(activation)
        self.weight = nn.Parameter(torch.randn(n_in, n_out) / math.sqrt(n_in + n_out))
        self.bias = nn.Parameter(torch.randn(n_out)) if bias else None
        self.timestep = nn.Parameter(0.1 + 0.001 * torch.randn(n_out)) if timestep and self.repeats else None

    def forward(self, x: Tensor) -> Tensor:
        return reference.dense(x, self.parts(), self.activation, dispatch.linear)

    def parts(self) -> DenseLayer:
        """Its parameters as the kernels take them."""
        return DenseLayer(self.weight, self.bias, self.timestep, self.repeats)


class EmbeddingNet(nn.Module):
    """A stack of dense layers, a residual wherever the width stays or doubles (the first layer included)."""

    def __init__(self, n_in: int, widths: Sequence[int], activation: str, *, timestep: bool, bias: bool = True) -> None:
        super().__init__()
        self.activation = activation_function(activation)
        pairs = zip([n_in, *widths[:-1]], widths, strict=True)
        self.layers = nn.ModuleList(
            Dense(a, b, activation, bias=bias, residual=True, timestep=timestep) for a, b in pairs
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def pairs(self, radial: Tensor, pair: Tensor | None, table: Tensor | None) -> Tensor:
        """The net on [s, table[pair]]: radial (n, K), pair (n, K) rows of ``table`` (T, c). Returns (n, K, C)."""
        return dispatch.embedding(radial, pair, table, *self.stack())

    def contracted_pairs(self, radial: Tensor, pair: Tensor | None, table: Tensor | None, rows: Tensor) -> Tensor:
        """``pairs`` contracted with rows (n, K, 4) over the neighbours. Returns (n, C, 4)."""
        return dispatch.contracted_embedding(radial, pair, table, *self.stack(), rows)

    def training_grid(
        self, low: float, high: float, pairs: int, pair: Tensor | None, table: Tensor | None
    ) -> Grid | None:
        """Splines that stand for the net in a training step; see ``kernels.embedding.training_grid``."""
        layers, activation = self.stack()
        return embedding.training_grid(low, high, pairs, pair, table, layers, activation, layers[0].weight)

    def stack(self) -> tuple[list[DenseLayer], Callable[[Tensor], Tensor]]:
        """Its layers as the kernels take them, and the activation of all of them."""
        return [cast(Dense, layer).parts() for layer in self.layers], self.activation


class FittingNet(nn.Module):
    """An embedding net followed by one linear layer to a single number per atom. (N, D) → (N,)."""

    def __init__(self, n_in: int, widths: Sequence[int], activation: str, *, timestep: bool) -> None:
        super().__init__()
        self.hidden = EmbeddingNet(n_in, widths, activation, timestep=timestep)
        self.output = Dense(widths[-1] if widths else n_in, 1, "linear")

    def forward(self, x: Tensor) -> Tensor:
        layers, activation = self.hidden.stack()
        return dispatch.fitting(x, layers, self.output.parts(), activation)
