"""What a potential makes of an atom without neighbours."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_numbers

from dpa1.batch import make_batch
from dpa1.frames import make_frame
from dpa1.model.potential import Potential


def empty_environment_energy(potential: Potential, level: int = 0) -> np.ndarray:
    """(E,) eV: what the network adds to an isolated atom of each element beyond its energy bias, at one level."""
    frames = [make_frame([atomic_numbers[s]], np.zeros((1, 3))) for s in potential.elements]
    batch = make_batch(frames, potential.cutoff).to(potential.energy_bias.device)
    with torch.no_grad():
        energy = potential(batch, potential.levels[level])
    return (energy - potential.energy_bias[level]).cpu().numpy()
