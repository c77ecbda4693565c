"""The type embedding: one learned vector per element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from dpa1.model.networks import EmbeddingNet

# (n, l, electrons) in the order the slots are laid out; a sub-shell l has 2(2l+1) slots.
_SUBSHELLS = "1s 2s 2p 3s 3p 3d 4s 4p 4d 4f 5s 5p 5d 5f 6s 6p 6d 7s 7p".split()
_CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}
_MADELUNG = "1s 2s 2p 3s 3p 4s 3d 4p 5s 4d 5p 6s 4f 5d 6p 7s 5f 6d 7p".split()
# Ground states that differ from the Madelung filling, as DeePMD-kit tabulates them (Lr with 6d¹, Ds with 6d⁹7s¹).
_EXCEPTIONS: dict[str, dict[str, int]] = {
    "Cr": {"4s": 1, "3d": 5}, "Cu": {"4s": 1, "3d": 10}, "Nb": {"5s": 1, "4d": 4}, "Mo": {"5s": 1, "4d": 5},
    "Ru": {"5s": 1, "4d": 7}, "Rh": {"5s": 1, "4d": 8}, "Pd": {"5s": 0, "4d": 10}, "Ag": {"5s": 1, "4d": 10},
    "La": {"4f": 0, "5d": 1}, "Ce": {"4f": 1, "5d": 1}, "Gd": {"4f": 7, "5d": 1}, "Pt": {"6s": 1, "5d": 9},
    "Au": {"6s": 1, "5d": 10}, "Ac": {"5f": 0, "6d": 1}, "Th": {"5f": 0, "6d": 2}, "Pa": {"5f": 2, "6d": 1},
    "U": {"5f": 3, "6d": 1}, "Np": {"5f": 4, "6d": 1}, "Cm": {"5f": 7, "6d": 1},
    "Ds": {"7s": 1, "6d": 9}, "Rg": {"7s": 1, "6d": 10},
}  # fmt: skip


def electron_configuration(symbol: str) -> np.ndarray:
    """(118,) spin-orbital occupations ±1 of the ground state; Hund's rule within a sub-shell."""
    left = atomic_numbers[symbol]
    occupation: dict[str, int] = {}
    for shell in _MADELUNG:
        occupation[shell] = min(left, _CAPACITY[shell[1]])
        left -= occupation[shell]
    occupation.update(_EXCEPTIONS.get(symbol, {}))
    slots: list[int] = []
    for shell in _SUBSHELLS:
        size, electrons = _CAPACITY[shell[1]], occupation[shell]
        row = [-1] * size
        # Odd slots (one spin) fill first, then the even ones.
        for slot in [*range(1, size, 2), *range(0, size, 2)][:electrons]:
            row[slot] = 1
        slots += row
    return np.array(slots, dtype=float)


class TypeEmbedding(nn.Module):
    """(E, width) table: one linear layer over one-hot types or electron configurations.

    As in DeePMD-kit the layer has a residual, which adds an identity where its width equals (or doubles) its input.
    """

    inputs: Tensor

    def __init__(self, elements: Sequence[str], width: int, *, bias: bool, electrons: bool) -> None:
        super().__init__()
        if electrons:
            inputs = torch.from_numpy(np.stack([electron_configuration(e) for e in elements]))
            self.factor = 1.0 / math.sqrt(inputs.shape[1])
        else:
            inputs = torch.eye(len(elements))
            self.factor = 1.0
        self.register_buffer("inputs", inputs.to(torch.get_default_dtype()), persistent=False)
        self.net = EmbeddingNet(inputs.shape[1], [width], "linear", timestep=False, bias=bias)

    def forward(self) -> Tensor:
        # Scaled here: the table of whole numbers survives a change of precision exactly.
        return self.net(self.inputs * self.factor)
