"""Rows: the neighbours of some centre atoms, side by side as a padded matrix. Padding never reaches a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpa1.config.model import ModelConfig
from dpa1.kernels import dispatch

WASTE = 0.15  # padded share of a block, at most


@dataclass(frozen=True)
class RowPlan:
    """Which atoms and pairs make one padded block: atoms (n,), pairs (n, K) indices into the pair list, mask (n, K)."""

    atoms: Tensor
    pairs: Tensor
    mask: Tensor

    @property
    def slots(self) -> int:
        """Empty ones included."""
        return self.pairs.numel()

    @property
    def device(self) -> torch.device:
        """That of the list."""
        return self.atoms.device

    def __len__(self) -> int:
        return len(self.atoms)

    def halves(self) -> list[RowPlan]:
        """The second and the first."""
        half = (len(self) + 1) // 2
        parts = slice(half, None), slice(0, half)
        return [RowPlan(self.atoms[part], self.pairs[part], self.mask[part]) for part in parts]


@dataclass(frozen=True)
class Rows:
    """n centre atoms with K neighbour slots each, in the descriptor's precision.

    Attributes
    ----------
    centre_type: (n,) and neighbor_type: (n, K) element indices.
    first_type: (n,) element index of the first atom of the centre's frame (deepmd convention's empty slots).
    mask: (n, K) slots that hold a neighbour which the descriptor sees.
    weight: (n, K) switch, 0 where masked.
    environment: (n, K, 4) raw environment matrix, 0 where masked.
    direction: (n, K, 3) unit vectors.
    empty_slots: (n,) deepmd convention: slots without a visible neighbour, of ``sel``.
    unfilled_slots: (n,) deepmd convention: slots without any neighbour, of ``sel``.
    """

    centre_type: Tensor
    neighbor_type: Tensor
    first_type: Tensor
    mask: Tensor
    weight: Tensor
    environment: Tensor
    direction: Tensor
    empty_slots: Tensor
    unfilled_slots: Tensor


def plan_rows(centre: Tensor, n_atoms: int, max_slots: int = 0) -> Iterator[RowPlan]:
    """Group atoms of similar neighbour number into padded blocks.

    centre (P,) sorted; ``max_slots`` bounds n·K of a block (0: no bound).
    Every atom appears in exactly one block; one without neighbours gets one empty slot.
    """
    counts = torch.bincount(centre, minlength=n_atoms)
    starts = torch.cumsum(counts, 0) - counts
    sorted_counts, order = torch.sort(counts, stable=True, descending=True)
    sizes = sorted_counts.cpu().numpy()
    total = np.concatenate([[0], np.cumsum(sizes)])
    begin = 0
    while begin < n_atoms:
        width = max(int(sizes[begin]), 1)
        limit = max(1, max_slots // width) if max_slots else n_atoms
        # A block grows while its padding stays small, or while it is too small to be worth splitting.
        many = np.arange(1, min(limit, n_atoms - begin) + 1)
        grown = total[begin + 1 : begin + len(many) + 1] - total[begin]
        ends = (width * many * (1.0 - WASTE) > grown) & (width * (many - 1) > 2048)
        end = begin + (int(ends.argmax()) if ends.any() else len(many))
        atoms = order[begin:end]
        slots = torch.arange(width, device=centre.device)
        mask = slots < counts[atoms].unsqueeze(1)
        pairs = torch.where(mask, starts[atoms].unsqueeze(1) + slots, 0)
        yield RowPlan(atoms, pairs, mask)
        begin = end


def rows_of(
    vectors: Tensor,
    filled: Tensor,
    centre_type: Tensor,
    neighbor_type: Tensor,
    first_type: Tensor,
    visible: Tensor | None,
    config: ModelConfig,
    dtype: torch.dtype,
) -> Rows:
    """The block from what is in its slots: vectors (n, K, 3) Å float64, filled (n, K), visible (E, E), the rest as in ``Rows``.

    Distances are formed in float64, everything after in ``dtype``.
    """
    mask = filled
    if visible is not None:
        mask = mask & visible[centre_type.unsqueeze(1), neighbor_type]
    weight, environment, direction = dispatch.environment(
        vectors, mask, dtype, config.switch_start, config.cutoff, config.environment_protection
    )
    slots = float(config.sel or 0)
    return Rows(
        centre_type=centre_type,
        neighbor_type=neighbor_type,
        first_type=first_type,
        mask=mask,
        weight=weight,
        environment=environment,
        direction=direction,
        empty_slots=(slots - mask.sum(-1)).to(dtype),
        unfilled_slots=(slots - filled.sum(-1)).to(dtype),
    )
