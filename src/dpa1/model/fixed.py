"""Energy, forces and virial of one structure in tensors of fixed shape, from the first operation to the last.

Nothing waits for the device and no shape depends on the positions, so that a CUDA graph can hold all of it. The list of
pairs reaches beyond the cutoff (a skin); each evaluation moves the neighbours within the cutoff to the front of a row of
``width`` slots. Whether they all fitted, and whether two atoms came too close, is part of the answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dpa1.kernels.wanted import geometry_only
from dpa1.model.potential import Potential
from dpa1.model.rows import rows_of
from dpa1.model.table import TableSet


class Answer(NamedTuple):
    """On the host: energies (N,) eV, forces (N, 3) eV/Å, virial (3, 3) eV, neighbours within the cutoff (N,), the distance of
    the closest pair in Å (inf where there is none), and the slots the fullest row needs: more than ``width`` were not there.
    """

    energies: Tensor
    forces: Tensor
    virial: Tensor
    neighbors: Tensor
    closest: float
    needed: int


class FixedShapes:
    """One structure's evaluation; ``positions`` (N, 3) and ``cell`` (3, 3) are buffers to be written into.

    Parameters
    ----------
    potential: frozen. What tables it has are kept, so that a recording never reads memory given back.
    numbers: (N,) atomic numbers on the potential's device.
    level: index of the level of theory.
    listed, width: slots per atom of the list, and of those within the cutoff.
    """

    def __init__(self, potential: Potential, numbers: Tensor, level: int, listed: int, width: int) -> None:
        self.potential, self.level, self.width = potential, level, width
        self.types = potential.types(numbers)
        self.first_type = self.types[:1].expand(len(numbers))
        self.tables: TableSet | None = None
        if potential.tables is not None:
            self.tables = replace(potential.tables.prepare(potential, self.types), all_inside=True)
        device = numbers.device
        self.positions = torch.zeros(len(numbers), 3, dtype=torch.float64, device=device)
        self.cell = torch.zeros(3, 3, dtype=torch.float64, device=device)
        self.neighbor = torch.zeros(len(numbers), listed, dtype=torch.int64, device=device)
        self.offset = torch.zeros(len(numbers), listed, 3, dtype=torch.float64, device=device)
        self.filled = torch.zeros(len(numbers), listed, dtype=torch.bool, device=device)
        self.seen = torch.zeros_like(self.filled)  # by the model, which may exclude pairs

    @property
    def listed(self) -> int:
        """Slots per atom of the list."""
        return self.neighbor.shape[1]

    def fill(self, centre: Tensor, neighbor: Tensor, offset: Tensor) -> None:
        """Take a list of pairs (P,), sorted by centre, with image offsets (P, 3) in cells; no atom has more than ``listed``."""
        counts = torch.bincount(centre, minlength=len(self.types))
        place = torch.arange(len(centre), device=centre.device) - (torch.cumsum(counts, 0) - counts)[centre]
        self.neighbor.zero_()[centre, place] = neighbor
        self.offset.zero_()[centre, place] = offset
        self.filled.copy_(torch.arange(self.listed, device=centre.device) < counts.unsqueeze(1))
        self.seen.copy_(self.potential._listed_pairs[self.types.unsqueeze(1), self.types[self.neighbor]])

    def evaluate(self) -> Tensor:
        """Everything of ``Answer`` as one tensor of 5 N + 11 numbers on the device; see ``read``."""
        potential, config, slots = self.potential, self.potential.config, self.neighbor.shape
        n_atoms, device = len(self.types), self.types.device
        with torch.no_grad():
            vectors = self.positions[self.neighbor] - self.positions.unsqueeze(1) + self.offset @ self.cell
            x, y, z = vectors.unbind(-1)
            square = torch.where(self.filled, x * x + y * y + z * z, torch.inf)
            within = square <= config.cutoff**2
            near = within & self.seen
            counts = near.sum(1)
            # Those too many, and all that are far, end in one slot behind the row.
            place = torch.where(near, torch.cumsum(near, 1) - 1, self.width).clamp(max=self.width)
            source = torch.zeros(n_atoms, self.width + 1, dtype=torch.int64, device=device)
            source = source.scatter(1, place, torch.arange(slots[1], device=device).expand(slots))[:, : self.width]
            mask = torch.arange(self.width, device=device) < counts.unsqueeze(1)
            neighbor = self.neighbor.gather(1, source)
            vectors = vectors.gather(1, source.unsqueeze(-1).expand(-1, -1, 3))
        vectors.requires_grad_()
        with torch.enable_grad():
            types, visible = self.types[neighbor], potential._visible
            rows = rows_of(vectors, mask, self.types, types, self.first_type, visible, config, potential.dtype)
            energies, _ = potential.energies(rows, self.level, self.tables)
            with geometry_only():
                (slope,) = torch.autograd.grad(energies.sum(), vectors)
        forces = slope.sum(1).index_add(0, neighbor.flatten(), -slope.flatten(0, 1))
        virial = -(slope.flatten(0, 1).T @ vectors.detach().flatten(0, 1))
        closest = square.amin().sqrt().reshape(1)
        degrees, needed = within.sum(1).double(), counts.amax().double().reshape(1)
        return torch.cat((energies.detach(), forces.flatten(), virial.flatten(), degrees, closest, needed))

    def read(self, packed: Tensor) -> Answer:
        """The parts of what ``evaluate`` returned, brought to the host."""
        n = len(self.types)
        energies, forces, virial, degrees, closest, needed = packed.cpu().split((n, 3 * n, 9, n, 1, 1))
        return Answer(energies, forces.view(n, 3), virial.view(3, 3), degrees.long(), float(closest), int(needed))
