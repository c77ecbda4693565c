"""Muon for weight matrices: momentum whose singular values are brought near one (Jordan et al. 2024, "Muon").

torch.optim.Muon is the same method in bfloat16, for which many processors have no instructions: there a step of it takes ten
times as long as the gradient of a model without attention. Here it is formed in the precision of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dpa1.kernels import openblas
from dpa1.kernels.products import product
from dpa1.model.threads import spread

LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315  # of σ ← aσ + bσ³ + cσ⁵, steep at zero
ITERATIONS = 5
SMALLEST_NORM = 1e-7
MOMENTUM = 0.95
LIKE_ADAM = 0.2  # root mean square of Adam's usual step, in learning rates (Liu et al. 2025, arXiv 2502.16982)
OBLONG = 2  # long side over short one, above which the iteration runs on the small product X Xᵀ


class MatrixMuon(torch.optim.Optimizer):
    """Steps of matrices along their orthogonalised Nesterov momentum, as long as Adam's; weight decay apart from them.

    Parameters
    ----------
    matrices: what to optimise; threads share them.
    decay: of the weights, per step and unit of learning rate.
    """

    def __init__(self, matrices: Sequence[Tensor], decay: float) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # a closure has no user here
        """Change the matrices that have a gradient."""
        for group in self.param_groups:
            todo = sorted((p for p in group["params"] if p.grad is not None), key=torch.numel, reverse=True)
            move = partial(self._move, rate=group["lr"], decay=group["weight_decay"])
            with openblas.alone():
                spread(todo, move, parallel=not any(p.is_cuda for p in todo))

    def _move(self, matrix: Tensor, rate: float, decay: float) -> None:
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
        update = orthogonalised(matrix.grad.lerp(mean, MOMENTUM))
        matrix.mul_(1 - rate * decay)
        matrix.add_(update, alpha=-rate * LIKE_ADAM * math.sqrt(max(matrix.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """(m, n) with the singular vectors of ``matrix``; singular values above a hundredth of their norm come to 0.7–1.2.

    Of a matrix much longer than wide the iteration X ← (a + bG + cG²)X, G = XXᵀ, is not done on X: its factors are
    polynomials of the first G, so they are multiplied with each other and with X once, at the end.
    """
    x = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    x = _by_small_product(x) if x.shape[1] >= OBLONG * x.shape[0] else _by_whole_matrix(x)
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


def _by_whole_matrix(x: Tensor) -> Tensor:
    for _ in range(ITERATIONS):
        x = product(_odd(product(x, x.t())), x)
    return x


def _by_small_product(x: Tensor) -> Tensor:
    square = product(x, x.t())
    total = factor = _odd(square)
    for _ in range(1, ITERATIONS):
        square = product(product(square, factor), factor)
        factor = _odd(square)
        total = product(total, factor)
    return product(total, x)


def _odd(square: Tensor) -> Tensor:
    """a + bG + cG²."""
    factor = square.mul(CUBIC).add_(product(square, square), alpha=QUINTIC)
    factor.diagonal().add_(LINEAR)
    return factor
