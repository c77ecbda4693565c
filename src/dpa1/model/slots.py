"""The nearest ``sel`` neighbours, as DeePMD-kit sees them; in exactly its order where statistics differ from slot to slot.

Images of one atom can lie at exactly equal distances; such a model gives them different weights, so even the order of
ties has to be DeePMD-kit's: its rounding (wrapped coordinates plus image shift), its sequence of images, ``torch.topk``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpa1.batch import Batch

BLOCK = 4_000_000  # distances at once


def nearest(batch: Batch, sel: int) -> Tensor | None:
    """(P,) which pairs are among the ``sel`` nearest of their centre; None for all."""
    centre, positions = batch.centre, batch.positions
    counts = torch.bincount(centre, minlength=len(batch.numbers))
    if not len(centre) or int(counts.max()) <= sel:
        return None
    distance = torch.linalg.vector_norm(positions[batch.neighbor] - positions[centre] + batch.shift, dim=-1)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(centre[order], stable=True)]
    rank = torch.arange(len(centre), device=centre.device) - (torch.cumsum(counts, 0) - counts)[centre]
    keep = torch.empty_like(centre, dtype=torch.bool)
    keep[order] = rank < sel
    return keep


@torch.no_grad()
def deepmd_order(batch: Batch, cutoff: float, sel: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest ``sel`` pairs of each atom as (centre, neighbor, shift), sorted by centre and slot.

    A frame that DeePMD-kit does not know (periodic along one or two directions) keeps the order of its batch.
    """
    parts = []
    begin = 0
    for frame, count in enumerate(batch.n_atoms.tolist()):
        mine = batch.frame[batch.centre] == frame
        known = [x[mine] for x in (batch.centre, batch.neighbor, batch.shift)]
        found = _slots(batch.positions[begin : begin + count], batch.cell[frame], cutoff, sel)
        found = (found[0] + begin, found[1] + begin, found[2])
        degrees = torch.bincount(known[0], minlength=begin + count).clamp(max=sel)
        same = torch.equal(torch.bincount(found[0], minlength=begin + count), degrees)
        parts.append(found if same else known)
        begin += count
    centre, neighbor, shift = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return centre, neighbor, shift


def _slots(positions: Tensor, cell: Tensor, cutoff: float, sel: int) -> tuple[Tensor, Tensor, Tensor]:
    count = len(positions)
    wrapped, images = positions, positions.new_zeros(1, 3)
    if bool((cell != 0).any(-1).all()):
        wrapped = torch.remainder(positions @ torch.linalg.inv(cell), 1.0) @ cell
        images = _images(cell, cutoff) @ cell
    extended = (wrapped + images.unsqueeze(1)).reshape(-1, 3)
    columns = []
    step = max(1, BLOCK // len(extended))
    for first in range(0, count, step):
        rows = torch.arange(first, min(first + step, count), device=positions.device)
        distance = torch.linalg.norm(extended - wrapped[rows].unsqueeze(1), dim=-1)
        distance[rows - first, rows] -= 1.0  # the atom itself comes first
        nearest, index = torch.topk(distance, min(sel + 1, len(extended)), largest=False)
        keep = nearest[:, 1:] <= cutoff
        columns.append((rows.unsqueeze(1).expand_as(keep)[keep], index[:, 1:][keep]))
    centre, index = (torch.cat(column) for column in zip(*columns, strict=True))
    neighbor = index % count
    shift = extended[index] - positions[neighbor] + positions[centre] - wrapped[centre]
    return centre, neighbor, shift


def _images(cell: Tensor, cutoff: float) -> Tensor:
    """(I, 3) integer images within the cutoff of the cell, in DeePMD-kit's sequence."""
    areas = torch.stack([torch.linalg.norm(torch.linalg.cross(cell[k - 2], cell[k - 1])) for k in range(3)])
    reach = torch.ceil(cutoff * areas / torch.linalg.det(cell).abs()).long().tolist()
    axes = [torch.arange(-n, n + 1, device=cell.device).to(cell.dtype) for n in reach]
    images = torch.cartesian_prod(*axes)
    return images[torch.argsort(torch.linalg.norm(images, dim=-1))]
