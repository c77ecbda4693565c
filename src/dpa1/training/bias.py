"""The energy bias of each element: fitted before training, kept exact for isolated atoms, refitted at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from dpa1.batch import Batch, make_batch
from dpa1.frames import Frame, make_frame
from dpa1.model.potential import Potential


class Pins:
    """Elements whose isolated atom must have exactly its labelled energy E₀, whatever the network does.

    The bias of such an element is E₀ − n, with n what the network gives an empty environment. ``apply`` keeps the bias
    at that value and gives n's gradient back to the training loss; ``fold`` does the former alone, before the model is
    used or saved.

    Parameters
    ----------
    energies: element symbol → eV, elements of the potential only.
    """

    def __init__(self, potential: Potential, energies: dict[str, float], level: int = 0) -> None:
        self.level = level
        device = potential.energy_bias.device
        self.index = torch.tensor([potential.elements.index(s) for s in energies], device=device)
        self.energies = torch.tensor(list(energies.values()), dtype=torch.float64, device=device)
        atoms = [make_frame([atomic_numbers[s]], np.zeros((1, 3))) for s in energies]
        self.atoms = make_batch(atoms, potential.cutoff).to(device)
        self.column = torch.full((119,), -1, dtype=torch.int64, device=device)
        self.column[self.atoms.numbers] = torch.arange(len(energies), device=device)

    def apply(self, potential: Potential, batch: Batch) -> Tensor:
        """(F,) zeros that carry the gradient of −n summed over each frame's pinned atoms; call before ``predict``."""
        network = self._network(potential)
        potential.energy_bias[self.level, self.index] = self.energies - network.detach()
        column = self.column[batch.numbers]
        per_atom = torch.where(column >= 0, (network.detach() - network)[column.clamp(min=0)], 0.0)
        return per_atom.new_zeros(len(batch)).index_add(0, batch.frame, per_atom)

    @torch.no_grad()
    def fold(self, potential: Potential) -> None:
        """Set the bias for the present weights."""
        potential.energy_bias[self.level, self.index] = self.energies - self._network(potential)

    def _network(self, potential: Potential) -> Tensor:
        return potential(self.atoms, potential.levels[self.level]) - potential.energy_bias[self.level, self.index]


def isolated_atoms(frames: Iterable[Frame], cutoff: float) -> dict[str, float]:
    """Element symbol → labelled energy (eV) of the single-atom frames in which the atom sees nobody, images included.

    The first such frame of an element counts.
    """
    from ase.data import chemical_symbols

    from dpa1.neighbors import find_neighbors

    found: dict[str, float] = {}
    for frame in frames:
        if len(frame) == 1 and frame.energy is not None and not len(find_neighbors(frame, cutoff).centre):
            found.setdefault(chemical_symbols[int(frame.numbers[0])], frame.energy)
    return found
