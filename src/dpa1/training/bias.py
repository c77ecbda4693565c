"""The energy bias of each element: fitted before training, kept exact for isolated atoms, refitted at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from dpa1.batch import Batch, level_index, make_batch
from dpa1.config.run import RunConfig
from dpa1.data.composition import CompositionFit, fit_composition
from dpa1.data.dataset import Dataset
from dpa1.data.loader import Loader
from dpa1.data.sampler import Budget, evaluation_batches
from dpa1.errors import UserError
from dpa1.frames import make_frame
from dpa1.model.potential import Potential
from dpa1.neighbors import find_neighbors
from dpa1.training.distributed import World
from dpa1.training.prepare import SAMPLE_ATOMS, sample

RIDGE = 1e-3  # of a robust fit, relative to the mean diagonal of its normal matrix
ROUNDS = 30  # of weighted least squares


class Pins:
    """Elements whose isolated atom must have exactly its labelled energy E₀, whatever the network does.

    The bias of such an element is E₀ − n, with n what the network gives an empty environment. ``apply`` keeps the bias
    at that value and gives n's gradient back to the training loss; ``fold`` does the former alone, before the model is
    used or saved.

    Parameters
    ----------
    energies: element symbol → eV, elements of the potential only; one such mapping per level of theory, in its order.
    """

    def __init__(self, potential: Potential, *energies: dict[str, float]) -> None:
        pairs = [(level, symbol) for level, found in enumerate(energies) for symbol in found]
        self.symbols = tuple(tuple(found) for found in energies)
        device = potential.energy_bias.device
        self.level = torch.tensor([level for level, _ in pairs], device=device)
        self.index = torch.tensor([potential.elements.index(symbol) for _, symbol in pairs], device=device)
        values = [energies[level][symbol] for level, symbol in pairs]
        self.energies = torch.tensor(values, dtype=torch.float64, device=device)
        atoms = [
            make_frame([atomic_numbers[symbol]], np.zeros((1, 3)), level=potential.levels[level])
            for level, symbol in pairs
        ]
        self.atoms = make_batch(atoms, potential.cutoff, levels=potential.levels).to(device)
        self.column = torch.full((len(potential.levels), 119), -1, dtype=torch.int64, device=device)
        self.column[self.level, self.atoms.numbers] = torch.arange(len(pairs), device=device)

    def apply(self, potential: Potential, batch: Batch) -> Tensor:
        """(F,) zeros that carry the gradient of −n summed over each frame's pinned atoms; call before ``predict``."""
        network = self._network(potential)
        potential.energy_bias[self.level, self.index] = self.energies - network.detach()
        column = self.column[potential.levels_of(batch), batch.numbers]
        per_atom = torch.where(column >= 0, (network.detach() - network)[column.clamp(min=0)], 0.0)
        return per_atom.new_zeros(len(batch)).index_add(0, batch.frame, per_atom)

    @torch.no_grad()
    def fold(self, potential: Potential) -> None:
        """Set the bias for the present weights."""
        potential.energy_bias[self.level, self.index] = self.energies - self._network(potential)

    def _network(self, potential: Potential) -> Tensor:
        return potential(self.atoms) - potential.energy_bias[self.level, self.index]


def pinned_energies(dataset: Dataset, config: RunConfig, levels: Sequence[str]) -> list[dict[str, float]]:
    """Per level, element symbol → labelled energy (eV) of the single-atom frames whose atom sees nobody, images included.

    The first such frame of an element counts; elements with a given bias or excluded from the energy are left out.
    """
    found: list[dict[str, float]] = [{} for _ in levels]
    if not config.training.pin_isolated_atoms or "energy" not in config.loss.terms:
        return found
    table, given = dataset.table, given_bias(config, levels)
    for i in np.flatnonzero((table.n_atoms == 1) & np.isfinite(table.energy)):
        frame = dataset[int(i)]
        symbol, level = chemical_symbols[int(frame.numbers[0])], level_index(frame, levels)
        left_out = {*given[level], *config.model.exclude_elements}
        if (
            symbol not in found[level]
            and symbol not in left_out
            and not len(find_neighbors(frame, config.model.cutoff).centre)
        ):
            found[level][symbol] = float(table.energy[i])
            if all(len(energies) == len(table.elements) for energies in found):
                break
    return found


def given_bias(config: RunConfig, levels: Sequence[str]) -> list[dict[str, float]]:
    """``training.energy_bias`` per level: element → eV, or with several levels, level → element → eV.

    Raises
    ------
    UserError
        when there are several levels and it does not say which is meant, or names one there is not.
    """
    given = config.training.energy_bias
    plain = {symbol: value for symbol, value in given.items() if not isinstance(value, dict)}
    named = {level: value for level, value in given.items() if isinstance(value, dict)}
    unknown = [level for level in named if level not in levels]
    if unknown or (plain and (named or len(levels) > 1)):
        what = (
            f"'{unknown[0]}' is no level of theory"
            if unknown
            else f"of which level of theory is '{next(iter(plain))}'?"
        )
        raise UserError(
            f"'training.energy_bias': {what} There are {', '.join(levels)}; write  energy_bias: {{{levels[0]}: {{H: -13.6}}}}"
        )
    return [dict(named.get(level, plain)) for level in levels]


def set_given(potential: Potential, config: RunConfig) -> list[dict[str, float]]:
    """Write ``training.energy_bias`` into the potential. Returns it as ``given_bias`` does.

    Raises
    ------
    UserError
        when the potential lacks an element of it, and as ``given_bias``.
    """
    given = given_bias(config, potential.levels)
    unknown = [symbol for values in given for symbol in values if symbol not in potential.elements]
    if unknown:
        raise UserError(
            f"'training.energy_bias': {', '.join(unknown)} is no element of the model; it has {', '.join(potential.elements)}"
        )
    for level, values in enumerate(given):
        for symbol, energy in values.items():
            potential.energy_bias[level, potential.elements.index(symbol)] = energy
    return given


def initialise(potential: Potential, dataset: Dataset, config: RunConfig, isolated: Sequence[dict[str, float]]) -> str:
    """Fit each level's bias to its training energies; isolated atoms and given values are held. Returns tables."""
    given = set_given(potential, config)
    fits: list[CompositionFit | None] = []
    lines: list[str] = []
    for level, name in enumerate(potential.levels):
        fixed = {**isolated[level], **given[level]}
        title = "energy bias" + (f" of level {name}" if len(potential.levels) > 1 else "")
        chosen = frames_of_level(dataset, potential.levels, level)
        if not np.isfinite(dataset.table.energy[chosen]).any():
            for symbol, energy in fixed.items():
                potential.energy_bias[level, potential.elements.index(symbol)] = energy
            lines.append(f"{title}: no training frame has an energy, so there is nothing to fit")
            fits.append(None)
            continue
        fit = fit_composition(dataset.table.take(chosen), potential.elements, fixed=fixed)
        potential.energy_bias[level] = torch.from_numpy(fit.bias)
        pinned = f"\nheld exact as isolated atoms: {', '.join(isolated[level])}" if isolated[level] else ""
        lines.append(f"{title}, fitted to the training energies\n{fit.table()}{pinned}")
        fits.append(fit)
    lines += _fill_absent(potential.energy_bias, fits, potential)
    return "\n".join(lines)


def refit(
    potential: Potential,
    dataset: Dataset,
    config: RunConfig,
    loader: Loader,
    pins: Pins | None,
    world: World,
    atoms: int = SAMPLE_ATOMS,
) -> str:
    """Shift each level's bias by the fit of label − prediction on a sample of its training frames.

    The fit minimises the sum of squares, or, for a loss that is not ``mse``, that of absolute values per atom. Pinned isolated atoms and given values stay as they are. ``atoms``: size of a sample at most. Returns tables.
    """
    if pins:
        pins.fold(potential)
    fits: list[CompositionFit | None] = []
    lines: list[str] = []
    shift = torch.zeros_like(potential.energy_bias)
    for level, name in enumerate(potential.levels):
        title = "energy bias" + (f" of level {name}" if len(potential.levels) > 1 else "")
        chosen, held = _what_to_fit(potential, dataset, config, pins, level)
        if not len(chosen) or len(held) == len(potential.elements):
            lines.append(f"{title}: nothing to refit")
            fits.append(None)
            continue
        chosen = chosen[sample(dataset.subset(chosen), config.training.statistics_frames, config.seed, atoms)]
        counts, energies = residuals(potential, dataset, chosen, loader, world)
        fit = fit_composition((counts, energies), potential.elements, fixed=held)
        if config.loss.kind != "mse":
            fit = _robust(fit, counts, energies, potential.elements, held)
        shift[level] = torch.from_numpy(fit.bias).to(world.device)
        lines.append(f"{title}, shift fitted to the residuals of the model")
        fits.append(fit)
    filled = _fill_absent(shift, fits, potential)
    potential.energy_bias += shift
    for level, own in enumerate(fits):
        if own is not None:
            lines[level] += f"\n{replace(own, bias=shift[level].cpu().numpy()).table('shift')}"
    return "\n".join([*lines, *filled])


def fit_levels(
    potential: Potential,
    dataset: Dataset,
    config: RunConfig,
    loader: Loader,
    pins: Pins | None,
    world: World,
    levels: Sequence[str],
) -> None:
    """Shift the bias of levels that began as copies of another by the least-squares fit of label − prediction.

    ``refit`` holds the bias of a rare element near what it was, which says nothing on another level of theory.
    """  # fmt: skip
    if pins:
        pins.fold(potential)
    for name in levels:
        level = potential.levels.index(name)
        chosen, held = _what_to_fit(potential, dataset, config, pins, level)
        if not len(chosen):
            continue
        chosen = chosen[sample(dataset.subset(chosen), config.training.statistics_frames, config.seed)]
        left = residuals(potential, dataset, chosen, loader, world)
        fit = fit_composition(left, potential.elements, fixed=held)
        seen = np.array([symbol not in {*fit.absent, *held} for symbol in potential.elements])
        # Elements that the level does not hold move along, as far as others of it did on average.
        absent = np.array([symbol in fit.absent for symbol in potential.elements])
        mean = fit.bias[seen].mean() if seen.any() else 0.0
        potential.energy_bias[level] += torch.from_numpy(np.where(absent, mean, fit.bias)).to(world.device)


def _what_to_fit(
    potential: Potential, dataset: Dataset, config: RunConfig, pins: Pins | None, level: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Numbers of the frames of a level that have an energy, and its elements whose bias is not shifted (each with 0)."""
    chosen = frames_of_level(dataset, potential.levels, level)
    held = [*(pins.symbols[level] if pins else ()), *given_bias(config, potential.levels)[level]]
    return chosen[np.isfinite(dataset.table.energy[chosen])], dict.fromkeys(held, 0.0)


def _robust(
    fit: CompositionFit, counts: np.ndarray, energies: np.ndarray, elements: Sequence[str], held: dict[str, float]
) -> CompositionFit:
    """Towards the least absolute residuals per atom, by repeated weighted least squares; ``RIDGE`` holds rare elements."""
    n = counts.sum(1)
    for _ in range(ROUNDS):
        size = np.abs((energies - counts @ fit.bias) / n)
        weights = 1.0 / np.maximum(size, 0.1 * np.median(size) + 1e-9)
        weights /= weights.mean()
        fit = fit_composition((counts, energies), elements, ridge=RIDGE, fixed=held, weights=weights)
    return fit


def frames_of_level(dataset: Dataset, levels: Sequence[str], level: int) -> np.ndarray:
    """Sorted numbers of the frames of one level; of the only level all are."""
    if len(levels) == 1:
        return np.arange(len(dataset))
    if levels[level] not in dataset.table.levels:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(dataset.table.level == dataset.table.levels.index(levels[level]))


def residuals(
    potential: Potential, dataset: Dataset, chosen: np.ndarray, loader: Loader, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """(C, E) atoms per element and (C,) label − prediction in eV of the chosen frames, the work shared by all processes."""
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
    return counts.cpu().numpy(), residuals.cpu().numpy()


def _fill_absent(bias: Tensor, fits: Sequence[CompositionFit | None], potential: Potential) -> list[str]:
    """Elements a level has no frame of: the value of another level, moved by the mean difference of the elements both have.

    Returns what was done, one line per level.
    """
    lines = []
    column = {symbol: k for k, symbol in enumerate(potential.elements)}
    for level, fit in enumerate(fits):
        filled = []
        for symbol in fit.absent if fit else ():
            for other, theirs in enumerate(fits):
                if fit is None or theirs is None or other == level or symbol in theirs.absent:
                    continue
                known = [column[s] for s in potential.elements if s not in fit.absent and s not in theirs.absent]
                offset = (bias[level, known] - bias[other, known]).mean() if known else 0.0
                bias[level, column[symbol]] = bias[other, column[symbol]] + offset
                filled.append(symbol)
                break
        if filled:
            lines.append(
                f"level {potential.levels[level]} has no energy with {', '.join(filled)}: their bias follows another level's"
            )
    return lines
