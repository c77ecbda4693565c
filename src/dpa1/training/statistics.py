"""Input statistics: what normalises the environment matrix, measured on a sample of the training frames.

========================  ==========================================  =============================================
quantity, per element     smooth                                      deepmd
========================  ==========================================  =============================================
counted                   real neighbors                              all ``sel`` slots, empty ones as zeros
radial mean               0, or the mean with ``subtract_mean``       the same
radial, angular scale     √E[(x − mean)²], the three angular          √(E[x²] − E[x]²), the three angular
                          components pooled, at least 0.01            components pooled, at least 0.01
element not in sample     all elements pooled                         mean 0, scale 0.1
========================  ==========================================  =============================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.config.model import ModelConfig
from dpa1.kernels import reference
from dpa1.model.potential import Potential

FLOOR = 1e-2
ABSENT = 0.1  # scale of an element no atom of the sample has


@dataclass(frozen=True)
class Statistics:
    """mean (E,) and scale (E, 2) as the descriptor stores them; mean and largest neighbour number per atom."""

    mean: Tensor
    scale: Tensor
    mean_neighbors: float
    max_neighbors: int


@torch.no_grad()
def measure(batches: Iterable[Batch], config: ModelConfig) -> Statistics:
    """Stream over ``batches`` (built with the model's cutoff); ``config`` has its elements set. float64 throughout."""
    with torch.random.fork_rng(devices=[]):
        probe = Potential(config.model_copy(update=_divisor(config))).set_precision("float64")
    sums = torch.zeros(len(probe.elements), 2, 3, dtype=torch.float64)  # radial, angular × count, Σx, Σx²
    atoms = pairs = most = 0
    for batch in batches:
        view = probe._view(batch)
        counts = torch.bincount(view.centre, minlength=len(view.types))
        atoms, pairs, most = atoms + len(counts), pairs + len(view.centre), max(most, int(counts.max()))
        distance = torch.linalg.vector_norm(view.vectors, dim=-1)
        # An excluded pair is a zero in a counted slot (deepmd) or no neighbour at all (smooth).
        seen = probe._visible_pairs[view.types[view.centre], view.types[view.neighbor]]
        weight = reference.switch(distance, config.switch_start, config.cutoff) * seen
        values = reference.environment_matrix(view.vectors, weight, distance, config.environment_protection)
        centre_type = view.types[view.centre]
        sums[..., 1].index_add_(0, centre_type, torch.stack([values[:, 0], values[:, 1:].sum(-1)], dim=-1))
        sums[..., 2].index_add_(0, centre_type, torch.stack([values[:, 0] ** 2, (values[:, 1:] ** 2).sum(-1)], dim=-1))
        if config.sel is None:
            slots = torch.bincount(centre_type[seen], minlength=len(sums)).double()
        else:
            slots = config.sel * torch.bincount(view.types, minlength=len(sums)).double()
        sums[..., 0] += slots.unsqueeze(-1) * torch.tensor([1.0, 3.0])
    mean, scale = _normal(sums, config)
    return Statistics(mean, scale, max(pairs / max(atoms, 1), 1.0), most)


def install(potential: Potential, statistics: Statistics) -> None:
    """Give ``potential`` its normalisation."""
    mean, scale = statistics.mean, statistics.scale
    if potential.config.slot_statistics:
        mean, scale = mean.unsqueeze(1), scale.unsqueeze(1)
    potential.descriptor.mean.copy_(mean)
    potential.descriptor.scale.copy_(scale)


def _divisor(config: ModelConfig) -> dict[str, float]:
    return {"mean_neighbors": 1.0} if config.convention == "smooth" else {}


def _normal(sums: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    deepmd = config.convention == "deepmd"
    if not deepmd:
        absent = sums[:, :, 0] == 0
        sums = torch.where(absent.unsqueeze(-1), sums.sum(0), sums)
    count = sums[..., 0].clamp(min=1.0)
    first, second = sums[..., 1] / count, sums[..., 2] / count
    mean = first[:, 0] if config.subtract_mean else torch.zeros_like(first[:, 0])
    if deepmd:
        variance = second - first**2
    else:
        # E[(x − m)²] about the stored mean m, which is 0 for the angular part.
        m = torch.stack([mean, torch.zeros_like(mean)], dim=-1)
        variance = second - 2.0 * first * m + m**2
    scale = variance.clamp(min=0.0).sqrt().clamp(min=FLOOR)
    if deepmd:
        scale = torch.where(sums[..., 0] == 0, ABSENT, scale)
    return mean, scale
