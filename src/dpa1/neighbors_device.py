"""The neighbour search of ``dpa1.neighbors`` in torch, for structures that live on a GPU; the same pairs in the same order."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpa1.frames import Frame
from dpa1.neighbors import CLOSEST, complete_cell, find_neighbors

REACH = 2  # cubes along an edge of the cutoff: smaller ones fit the sphere better
CANDIDATES, GPU_CANDIDATES = 1 << 21, 1 << 26  # pairs looked at together, of which about a fourth is kept
EDGE = 1e-9  # of the cutoff: candidates are taken a little beyond it, the last word has the distance


def find_on_device(frame: Frame, cutoff: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs as ``find_neighbors`` gives them: centre, neighbor (P,) int64 and shift (P, 3) float64 whole numbers.

    Periodic images around the cell become sites of their own; all are sorted into cubes of half the cutoff, and each atom
    meets those of the cubes around it, as many atoms at a time as memory is meant to hold.

    Raises
    ------
    UserError
        when two atoms lie on one spot, as ``find_neighbors``.
    """
    cell = torch.from_numpy(complete_cell(frame)).to(device)
    positions = torch.from_numpy(np.asarray(frame.positions)).to(device)
    periodic = torch.from_numpy(np.asarray(frame.pbc)).to(device)
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    home = torch.where(periodic, torch.floor(fractional), 0.0)
    inside = fractional - home
    # A plane distance of 1/‖column of the inverse‖ lies between opposite faces.
    reach = cutoff * (1.0 + EDGE) * torch.linalg.vector_norm(inverse, dim=0)
    count = torch.where(periodic, torch.ceil(reach), 0.0).long().tolist()
    axes = [torch.arange(-n, n + 1, device=device, dtype=cell.dtype) for n in count]
    atoms, images = [], []
    for image in torch.cartesian_prod(*axes):
        moved = inside + image
        near = (((moved >= -reach) & (moved <= 1.0 + reach)) | ~periodic).all(1)
        chosen = torch.nonzero(near)[:, 0]
        atoms.append(chosen)
        images.append(image.expand(len(chosen), 3))
    atom, image = torch.cat(atoms), torch.cat(images)
    placed = (inside[atom] + image) @ cell
    low = placed.amin(0)
    side = cutoff * (1.0 + EDGE) / REACH
    cube = torch.floor((placed - low) / side).long() + REACH
    size = cube.amax(0) + 1 + REACH
    stride = torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    key, order = torch.sort((cube * stride).sum(1), stable=True)
    sites = _Sites(positions, cell, home, inside @ cell, atom[order], image[order], placed[order])
    own = ((torch.floor((sites.central - low) / side).long() + REACH) * stride).sum(1, keepdim=True)
    # Cubes in line along the last axis are one run of the sorted sites.
    near = torch.arange(-REACH, REACH + 1, device=device)
    middle = (torch.cartesian_prod(near, near) * stride[:2]).sum(1)
    first = torch.searchsorted(key, own + middle - REACH)
    many = torch.searchsorted(key, own + middle + REACH, right=True) - first
    candidates = torch.cumsum(many.sum(1), 0)

    pieces = max(1, -(-int(candidates[-1]) // (CANDIDATES if device.type == "cpu" else GPU_CANDIDATES)))
    share = torch.arange(1, pieces, device=device) * (int(candidates[-1]) // pieces)
    ends = [0, *torch.searchsorted(candidates, share).tolist(), len(positions)]
    found = [sites.pairs(a, b, first[a:b], many[a:b], cutoff) for a, b in itertools.pairwise(ends) if b > a]
    centre, neighbor, shift, closest = (torch.cat(parts) for parts in zip(*found, strict=True))
    if bool(closest.min() < CLOSEST):
        find_neighbors(frame, cutoff)  # raises, naming the atoms
    return centre, neighbor, shift


@dataclass(frozen=True)
class _Sites:
    """Atoms (N,): positions, the cell they were wrapped by (home) and where they are then (central). Sites (S,), sorted by
    cube: which image of which atom, and where."""

    positions: Tensor
    cell: Tensor
    home: Tensor
    central: Tensor
    atom: Tensor
    image: Tensor
    placed: Tensor

    def pairs(self, a: int, b: int, first: Tensor, many: Tensor, cutoff: float) -> tuple[Tensor, ...]:
        """Centre, neighbor, shift of the atoms a…b in order, and their smallest distance; runs (b − a, R) of sites."""
        runs = first.shape[1]
        first, many = first.flatten(), many.flatten()
        run = torch.repeat_interleave(torch.arange(len(many), device=many.device), many)
        place = torch.arange(len(run), device=many.device)
        site = place + (first - (torch.cumsum(many, 0) - many)).index_select(0, run)
        centre = torch.div(run, runs, rounding_mode="floor") + a
        apart = self.placed.index_select(0, site).sub_(self.central.index_select(0, centre))
        chosen = torch.nonzero(apart.square_().sum(1) <= (cutoff * (1.0 + EDGE)) ** 2)[:, 0]
        centre, site = centre[chosen], site[chosen]
        neighbor, image = self.atom[site], self.image[site]
        shift = image + self.home[centre] - self.home[neighbor]
        vectors = self.positions[neighbor] - self.positions[centre] + shift @ self.cell
        distance = torch.linalg.vector_norm(vectors, dim=1)
        itself = (neighbor == centre) & (image == 0).all(1)
        kept = torch.nonzero((distance <= cutoff) & ~itself)[:, 0]
        centre, neighbor, shift, distance = centre[kept], neighbor[kept], shift[kept], distance[kept]
        order = self._order(centre - a, neighbor, shift, b - a)
        closest = torch.cat([distance, distance.new_full((1,), torch.inf)]).amin(0, keepdim=True)
        return centre[order], neighbor[order], shift[order], closest

    def _order(self, centre: Tensor, neighbor: Tensor, shift: Tensor, centres: int) -> Tensor:
        """That sorts by centre, neighbor and shift: one sort of whole numbers where they fit into 63 bits."""
        if not len(centre):
            return centre
        low = shift.amin(0)
        span = (shift.amax(0) - low + 1).tolist()
        columns = [centre, neighbor, *(shift - low).long().unbind(1)]
        sizes = [centres, len(self.positions), *(int(s) for s in span)]
        if math.prod(sizes) < 2**63:
            key = columns[0]
            for column, size in zip(columns[1:], sizes[1:], strict=True):
                key = key * size + column
            return torch.argsort(key)
        order = torch.arange(len(centre), device=centre.device)
        for column in reversed(columns):
            order = order[torch.argsort(column[order], stable=True)]
        return order
