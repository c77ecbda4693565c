"""The energy bias of each element: fitted before training, kept exact for isolated atoms, refitted at the end."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from dpa1.batch import Batch, make_batch
from dpa1.config.run import RunConfig
from dpa1.data.composition import fit_composition
from dpa1.data.dataset import Dataset
from dpa1.data.loader import Loader
from dpa1.data.sampler import Budget, evaluation_batches
from dpa1.errors import UserError
from dpa1.frames import make_frame
from dpa1.model.potential import Potential
from dpa1.neighbors import find_neighbors
from dpa1.training.distributed import World
from dpa1.training.prepare import SAMPLE_ATOMS, sample


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
        self.level, self.symbols = level, tuple(energies)
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


def isolated_energies(dataset: Dataset, config: RunConfig) -> dict[str, float]:
    """Element symbol → labelled energy (eV) of the single-atom frames in which the atom sees nobody, images included.

    The first such frame of an element counts; elements with a given bias or excluded from the energy are left out.
    """
    if not config.training.pin_isolated_atoms or "energy" not in config.loss.terms:
        return {}
    table = dataset.table
    left_out = {*config.training.energy_bias, *config.model.exclude_elements}
    found: dict[str, float] = {}
    for i in np.flatnonzero((table.n_atoms == 1) & np.isfinite(table.energy)):
        frame = dataset[int(i)]
        symbol = chemical_symbols[int(frame.numbers[0])]
        if (
            symbol not in found
            and symbol not in left_out
            and not len(find_neighbors(frame, config.model.cutoff).centre)
        ):
            found[symbol] = float(table.energy[i])
            if len(found) == len(table.elements):
                break
    return found


def initialise(potential: Potential, dataset: Dataset, config: RunConfig, isolated: dict[str, float]) -> str:
    """Fit the bias to the energies of all training frames; isolated atoms and given values are held. Returns a table."""
    unknown = [symbol for symbol in config.training.energy_bias if symbol not in potential.elements]
    if unknown:
        raise UserError(
            f"'training.energy_bias': {', '.join(unknown)} is no element of the model; it has {', '.join(potential.elements)}"
        )
    fixed = {**isolated, **config.training.energy_bias}
    if not dataset.coverage["energy"]:
        for symbol, energy in fixed.items():
            potential.energy_bias[0, potential.elements.index(symbol)] = energy
        return "energy bias: no training frame has an energy, so there is nothing to fit"
    fit = fit_composition(dataset, potential.elements, fixed=fixed)
    potential.energy_bias[0] = torch.from_numpy(fit.bias)
    pinned = f"\nheld exact as isolated atoms: {', '.join(isolated)}" if isolated else ""
    return f"energy bias, fitted to the training energies\n{fit.table()}{pinned}"


def refit(
    potential: Potential,
    dataset: Dataset,
    config: RunConfig,
    loader: Loader,
    pins: Pins | None,
    world: World,
    atoms: int = SAMPLE_ATOMS,
) -> str:
    """Shift the bias by the least-squares fit of label − prediction on a sample of training frames. Returns a table.

    Pinned isolated atoms and given values stay as they are. ``atoms``: size of the sample at most.
    """
    if pins:
        pins.fold(potential)
    chosen = np.flatnonzero(np.isfinite(dataset.table.energy))
    if len(chosen):
        chosen = chosen[sample(dataset.subset(chosen), config.training.statistics_frames, config.seed, atoms)]
    held = dict.fromkeys([*(pins.symbols if pins else ()), *config.training.energy_bias], 0.0)
    if not len(chosen) or len(held) == len(potential.elements):
        return "energy bias: nothing to refit"
    residuals = torch.zeros(len(chosen), dtype=torch.float64, device=world.device)
    counts = torch.zeros(len(chosen), len(potential.elements), dtype=torch.float64, device=world.device)
    budget = Budget("atoms", max(1024, int(dataset.sizes.max())))
    for places in evaluation_batches(dataset.sizes[chosen], budget, world.rank, world.size):
        batch = loader.make(chosen[places]).to(world.device)
        energy = potential.predict(batch, forces=False, virial=False)["energy"]
        place = torch.from_numpy(places).to(world.device)
        residuals[place] = batch.energy - energy
        ones = torch.ones_like(batch.positions[:, 0])
        counts.index_put_((place[batch.frame], potential.types(batch.numbers)), ones, accumulate=True)
    world.add(residuals)
    world.add(counts)
    fit = fit_composition((counts.cpu().numpy(), residuals.cpu().numpy()), potential.elements, fixed=held)
    potential.energy_bias[0] += torch.from_numpy(fit.bias).to(world.device)
    return f"energy bias, shift fitted to the residuals of the model\n{fit.table()}"
