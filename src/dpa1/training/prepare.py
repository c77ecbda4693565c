"""What happens before the first step: data are opened and checked, the model is built, inputs and energies are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dpa1.batch import Batch, make_batch
from dpa1.config.model import ModelConfig
from dpa1.config.run import RunConfig
from dpa1.data.dataset import Dataset, open_data
from dpa1.data.loader import Loader
from dpa1.data.sampler import Budget, Sampler, estimate_pairs, evaluation_batches
from dpa1.errors import UserError
from dpa1.model.potential import Potential
from dpa1.training.distributed import World
from dpa1.training.loss import LABELS
from dpa1.training.statistics import install, measure

SAMPLE_ATOMS = 50_000  # atoms in a sample for statistics at most


@dataclass(frozen=True)
class Data:
    """The three parts of the data; every element and label they need has been checked."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    elements: tuple[str, ...]
    level: str


def open_checked(config: RunConfig) -> Data:
    """Open the data of a run.

    Raises
    ------
    UserError
        unreadable data, a label the loss asks for that no frame has, an element only outside the training data,
        several levels of theory.
    """
    train, valid, test = open_data(config.data, config.seed)
    train.require([LABELS[term] for term in config.loss.terms])
    _check_metric(config, valid)
    elements = config.model.elements or tuple(train.elements)
    for name, part in (("training", train), ("validation", valid), ("test", test)):
        unknown = [symbol for symbol in (part.elements if part else []) if symbol not in elements]
        if unknown:
            remedy = (
                "add it to model.elements" if config.model.elements else "no training frame has it: remove such frames"
            )
            raise UserError(f"the {name} data hold {', '.join(unknown)}, which the model does not know; {remedy}")
    levels = sorted({level for part in (train, valid, test) if part for level in part.table.levels})
    if len(levels) > 1:
        raise UserError(
            f"the data mix the levels of theory {', '.join(levels)}, whose energies do not compare; train on one of them"
        )
    return Data(train, valid, test, elements, levels[0] if levels else "default")


def _check_metric(config: RunConfig, valid: Dataset | None) -> None:
    metric = config.training.valid_metric
    if valid is None:
        if config.training.patience is not None:
            raise UserError("'training.patience' needs validation data; give data.valid or drop the key")
        return
    wanted = list(config.loss.terms) if metric == "loss" else [metric.split("_")[0]]
    if not any(valid.coverage[LABELS[term]] for term in wanted):
        names = " or ".join(LABELS[term] for term in wanted)
        raise UserError(f"no validation frame has {names}, so '{metric}' cannot be measured; set data.valid to null")


def make_loader(dataset: Dataset, config: RunConfig, cutoff: float, world: World) -> Loader:
    """The endless, seeded stream of this process's training batches."""
    kind, value = config.training.budget
    sampler = Sampler(_costs(dataset, kind, cutoff), Budget(kind, value), config.seed, world.rank, world.size)
    return Loader(dataset, sampler, cutoff, prefetch=2 if config.training.prefetch else 0)


def evaluation_loader(
    dataset: Dataset, config: RunConfig, cutoff: float, world: World
) -> tuple[Loader, list[np.ndarray]]:
    """This process's share of ``dataset``: a loader and the frame numbers of each batch."""
    kind, value = config.training.budget
    budget = Budget(kind, value)
    costs = _costs(dataset, kind, cutoff)
    loader = Loader(dataset, Sampler(costs, budget, config.seed, shuffle=False), cutoff, prefetch=0)
    return loader, evaluation_batches(costs, budget, world.rank, world.size)


def _costs(dataset: Dataset, kind: str, cutoff: float) -> np.ndarray:
    return estimate_pairs(dataset.sizes, dataset.table.volume, cutoff) if kind == "pairs" else dataset.sizes


def resolve_steps(config: RunConfig, sampler: Sampler) -> RunConfig:
    """``epochs`` turned into ``steps``."""
    training = config.training
    if training.epochs is None:
        return config
    per_step = sampler.world * training.accumulate
    steps = math.ceil(training.epochs * len(sampler.batches(0)) / per_step)
    return config.model_copy(update={"training": training.model_copy(update={"steps": steps, "epochs": None})})


def sample(dataset: Dataset, frames: int, seed: int, atoms: int = SAMPLE_ATOMS) -> np.ndarray:
    """Sorted numbers of a random choice of at most ``frames`` frames and ``atoms`` atoms, at least one frame."""
    order = np.random.default_rng([seed, 0x57A7]).permutation(len(dataset))[:frames]
    within = np.cumsum(dataset.sizes[order]) <= atoms
    within[0] = True
    return np.sort(order[within])


def build(config: ModelConfig, data: Data, chosen: np.ndarray, seed: int) -> tuple[Potential, int]:
    """The untrained potential with its input statistics; and the largest neighbour number that was met."""
    config = config.model_copy(update={"elements": data.elements})
    statistics = measure(_one_by_one(data.train, chosen, config.cutoff), config)
    if config.convention == "smooth" and config.mean_neighbors is None:
        config = config.model_copy(update={"mean_neighbors": round(statistics.mean_neighbors, 4)})
    torch.manual_seed(seed)
    potential = Potential(config, [data.level])
    install(potential, statistics)
    potential.info["trained_elements"] = [symbol for symbol in data.elements if symbol in data.train.elements]
    return potential, statistics.max_neighbors


def _one_by_one(dataset: Dataset, chosen: np.ndarray, cutoff: float) -> Iterator[Batch]:
    for i in chosen:
        yield make_batch([dataset[int(i)]], cutoff)
