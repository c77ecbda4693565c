"""The neighbour search of ``dpa1.neighbors`` in torch, for structures that live on a GPU; the same pairs in the same order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpa1.frames import Frame
from dpa1.neighbors import CLOSEST, complete_cell, find_neighbors

EDGE = 1e-9  # of the cutoff: candidates are taken a little beyond it, the last word has the distance


def find_on_device(frame: Frame, cutoff: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs as ``find_neighbors`` gives them: centre, neighbor (P,) int64 and shift (P, 3) float64 whole numbers.

    Periodic images around the cell become atoms of their own; all are sorted into cubes of the cutoff's size, and each
    atom meets those of the 27 cubes around it.

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
    central = inside @ cell
    low = placed.amin(0)
    side = cutoff * (1.0 + EDGE)
    cube = torch.floor((placed - low) / side).long() + 1
    size = cube.amax(0) + 2
    stride = torch.stack([size[1] * size[2], size[2], torch.ones_like(size[2])])
    key, order = torch.sort((cube * stride).sum(1), stable=True)
    own = ((torch.floor((central - low) / side).long() + 1) * stride).sum(1)
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * 3)
    found = []
    for offset in (steps * stride).sum(1):
        first = torch.searchsorted(key, own + offset)
        many = torch.searchsorted(key, own + offset, right=True) - first
        centre = torch.repeat_interleave(torch.arange(len(own), device=device), many)
        begin = torch.cumsum(many, 0) - many
        other = order[torch.arange(len(centre), device=device) - (begin - first)[centre]]
        itself = (atom[other] == centre) & (image[other] == 0).all(1)
        shift = image[other] + home[centre] - home[atom[other]]
        vectors = positions[atom[other]] - positions[centre] + shift @ cell
        keep = (torch.linalg.vector_norm(vectors, dim=1) <= cutoff) & ~itself
        found.append((centre[keep], atom[other][keep], shift[keep], vectors[keep]))
    centre, neighbor, shift, vectors = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(vectors) and bool(torch.linalg.vector_norm(vectors, dim=1).min() < CLOSEST):
        find_neighbors(frame, cutoff)  # raises, naming the atoms
    place = torch.arange(len(centre), device=device)
    for keys in (shift[:, 2], shift[:, 1], shift[:, 0], neighbor, centre):
        place = place[torch.argsort(keys[place], stable=True)]
    return centre[place], neighbor[place], shift[place]
