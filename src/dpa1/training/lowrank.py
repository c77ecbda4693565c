"""What may change when a model is fine-tuned; low-rank updates that are plain weights at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dpa1.config.finetune import Method
from dpa1.config.training import OptimizerConfig
from dpa1.model.networks import Dense
from dpa1.model.potential import Potential
from dpa1.training.optimizer import Optimizer, make_optimizer

MEANING = {
    "full": "all weights learn",
    "freeze": "attention and fitting net learn; type embedding and embedding net stay",
    "heads": "the fitting net learns; the descriptor stays",
    "lora": "low-rank updates of the attention and fitting matrices, and their biases, learn; all else stays",
}


def choose_parameters(potential: Potential, method: Method, new: Sequence[str]) -> None:
    """Let learn what ``method`` says (``MEANING``), and always the type embeddings of the elements that are new."""
    descriptor = potential.descriptor
    frozen: list[nn.Module] = []
    if method == "heads":
        frozen = [descriptor]
    elif method in ("freeze", "lora"):
        frozen = [descriptor.type_embedding, descriptor.embedding]
        frozen += [descriptor.type_net] if descriptor.type_net is not None else []
    for module in frozen:
        module.requires_grad_(False)
    if frozen and new and not potential.config.electron_configuration:
        weight = cast(Dense, descriptor.type_embedding.net.layers[0]).weight
        learns = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
        learns[[potential.elements.index(symbol) for symbol in new]] = 1.0
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient: gradient * learns)


def lora_matrices(potential: Potential, rank: int) -> list[nn.Parameter]:
    """The matrices that ``lora`` updates: those of attention and fitting nets that are larger than their update."""
    parts = [potential.descriptor.attention, potential.fitting, potential.level_fittings]
    return [p for part in parts for p in part.parameters() if p.ndim == 2 and p.requires_grad and min(p.shape) > rank]


class LowRank:
    """An optimizer of W = W₀ + A·B in place of W (LoRA, arXiv 2106.09685): W always holds the merged matrix.

    The gradient of W that the training step forms gives those of A and B by the chain rule; so validation, averages,
    checkpoints and the final model see plain weights of the unchanged architecture.

    Parameters
    ----------
    parameters: all that learn.  matrices: those of them that are updated in low rank.
    """

    def __init__(
        self, parameters: Sequence[Tensor], matrices: Sequence[Tensor], rank: int, config: OptimizerConfig
    ) -> None:
        self.matrices = list(matrices)
        self.start = [w.detach().clone() for w in matrices]
        # B starts at zero, so the first model is the base; A has rows of unit length on average.
        self.left = [torch.randn(len(w), rank, dtype=w.dtype, device=w.device) / rank**0.5 for w in matrices]
        self.right = [w.new_zeros(rank, w.shape[1]) for w in matrices]
        chosen = {id(w) for w in matrices}
        self.inner: Optimizer = make_optimizer(
            [*self.left, *self.right, *(p for p in parameters if id(p) not in chosen)], config
        )

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """The optimizers inside."""
        return [self.inner] if isinstance(self.inner, torch.optim.Optimizer) else self.inner.parts

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none)
        for w in self.matrices:
            w.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change A, B and the other parameters, and merge."""
        for w, a, b in zip(self.matrices, self.left, self.right, strict=True):
            assert w.grad is not None
            a.grad, b.grad = w.grad @ b.T, a.T @ w.grad
        self.inner.step()
        for w, start, a, b in zip(self.matrices, self.start, self.left, self.right, strict=True):
            w.copy_(start + a @ b)

    def extra_state(self) -> dict[str, Tensor]:
        """W₀, A and B by number, for a checkpoint."""
        groups = {"start": self.start, "left": self.left, "right": self.right}
        return {f"{name}.{k}": tensor for name, group in groups.items() for k, tensor in enumerate(group)}

    @torch.no_grad()
    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``extra_state`` gave."""
        for key, tensor in self.extra_state().items():
            tensor.copy_(tensors[key])
