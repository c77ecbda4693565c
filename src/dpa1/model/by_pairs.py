"""Inference without attention on tables: atoms are evaluated from their pairs as they are listed, without padded rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpa1.kernels import dispatch
from dpa1.kernels.compiled_pairs import closest
from dpa1.kernels.reference import Lookup
from dpa1.kernels.wanted import geometry_only
from dpa1.model.table import nearest

if TYPE_CHECKING:
    from dpa1.model.potential import Level, Pieces, Potential, View


@dataclass(frozen=True)
class Span:
    """Atoms that follow each other, whose pairs do so, too; ends (N,): where the pairs of every atom end."""

    atoms: slice
    ends: Tensor

    @property
    def first(self) -> int:
        """Of its pairs."""
        return int(self.ends[self.atoms.start - 1]) if self.atoms.start else 0

    @property
    def pairs(self) -> slice:
        """Of the list."""
        return slice(self.first, int(self.ends[self.atoms.stop - 1]))

    @property
    def slots(self) -> int:
        """How many pairs there are."""
        return self.pairs.stop - self.pairs.start

    @property
    def device(self) -> torch.device:
        """That of the list."""
        return self.ends.device

    def __len__(self) -> int:
        return self.atoms.stop - self.atoms.start

    def halves(self) -> list[Span]:
        """The second and the first."""
        middle = self.atoms.start + (len(self) + 1) // 2
        return [Span(slice(middle, self.atoms.stop), self.ends), Span(slice(self.atoms.start, middle), self.ends)]


def plan_spans(centre: Tensor, n_atoms: int, most: int) -> Iterator[Span]:
    """All atoms in spans of about equally many pairs, at most ``most`` where no atom has more; centre (P,) sorted."""
    ends = torch.cumsum(torch.bincount(centre, minlength=n_atoms), 0)
    count = max(1, -(-len(centre) // most))
    limits = torch.arange(1, count) * (len(centre) / count)
    cuts = torch.searchsorted(ends, limits.long()).tolist()
    edges = sorted({0, *cuts, n_atoms})
    for begin, end in pairwise(edges):
        yield Span(slice(begin, end), ends)


def lookup_of(potential: Potential, view: View) -> Lookup | None:
    """What turns the pairs of a view into tabulated features; None where only rows of neighbours will do."""
    descriptor, config, tables = potential.descriptor, potential.config, view.tables
    plain = tables is not None and not (descriptor.attention or config.slot_statistics or potential._hides_types)
    empty_slots_count = config.convention == "deepmd" and config.subtract_mean
    if tables is None or not plain or descriptor.type_net is not None or empty_slots_count or not len(view.centre):
        return None
    grid, scale = tables.grid, descriptor.scale
    lengths = (config.switch_start, config.cutoff, config.environment_protection)
    lookup = Lookup(
        *lengths, descriptor.mean, scale[:, 0], scale[:, 1], config.convention == "deepmd",
        grid.inverse, grid.origin, grid.cells, grid.row, tables.values[0],
    )  # fmt: skip
    path = dispatch.PAIRS
    if view.vectors.device.type != path.device or not path.supports(view.vectors, None, None, None, lookup):
        return None
    if not dispatch.holds(path, potential.dtype, path.device):
        return None
    return lookup if closest(view.vectors) >= nearest(config.cutoff) else None


def evaluate(potential: Potential, view: View, level: Level, lookup: Lookup, span: Span, derive: bool) -> Pieces:
    """Atomic energies (n,), slopes along the span's pairs (p, 3) and descriptors (n, D)."""
    vectors = view.vectors[span.pairs].detach()
    centre_type, neighbor_type = view.types[span.atoms], view.types[view.neighbor[span.pairs]]
    with torch.set_grad_enabled(derive), geometry_only():
        vectors.requires_grad_(derive)
        ends = span.ends[span.atoms] - span.first
        product = dispatch.PAIRS.run(vectors, ends, centre_type, neighbor_type, lookup)
        descriptor = potential.descriptor.finish(product, centre_type)
        mine = level if isinstance(level, int) else level[span.atoms]
        energies = potential.energies_of(descriptor, centre_type, mine)
        slope = torch.autograd.grad(energies.sum(), vectors)[0] if derive else vectors
    return energies.detach(), slope, descriptor.detach()
