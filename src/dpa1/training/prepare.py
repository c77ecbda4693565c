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
from dpa1.data.dataset import Dataset
from dpa1.data.loader import Loader
from dpa1.data.outliers import Dropped
from dpa1.data.overlap import check_overlap
from dpa1.data.parts import Parts, open_data
from dpa1.data.sampler import Budget, Sampler, estimate_pairs, evaluation_batches
from dpa1.errors import UserError, did_you_mean
from dpa1.model.adapt import adapt
from dpa1.model.potential import Potential
from dpa1.training.distributed import World
from dpa1.training.loss import LABELS
from dpa1.training.statistics import install, measure

SAMPLE_ATOMS = 50_000  # atoms in a sample for statistics at most


@dataclass(frozen=True)
class Data:
    """The three parts of the data; every element, label and level of theory they need has been checked.

    ``dropped`` and ``copies`` as in ``Parts``.
    """

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    elements: tuple[str, ...]
    levels: tuple[str, ...]
    dropped: tuple[Dropped, ...] = ()
    copies: int = 0


def open_checked(config: RunConfig) -> Data:
    """Open the data of a run.

    Raises
    ------
    UserError
        unreadable data, a label the loss asks for that no frame has, a source without any of them, an element only
        outside the training data, a level of theory that is missing or that no training frame has; validation or test
        files that hold training frames of the same level.
    """
    return check(config, open_data(config.data, config.seed))


def check(config: RunConfig, opened: Parts, known: tuple[str, ...] = ()) -> Data:
    """The same for data that are open; ``known``: elements that the model has whatever the training data hold."""
    train, valid, test, dropped, copies = opened
    train.require([LABELS[term] for term in config.loss.terms])
    _check_sources(train, [LABELS[term] for term in config.loss.terms])
    _check_metric(config, valid)
    elements = config.model.elements or (*known, *(symbol for symbol in train.elements if symbol not in known))
    for name, part in (("training", train), ("validation", valid), ("test", test)):
        unknown = [symbol for symbol in (part.elements if part else []) if symbol not in elements]
        if unknown:
            remedy = (
                "add it to model.elements" if config.model.elements else "no training frame has it: remove such frames"
            )
            raise UserError(f"the {name} data hold {', '.join(unknown)}, which the model does not know; {remedy}")
    parts = {"training": train, "validation": valid, "test": test}
    levels = _levels({name: part for name, part in parts.items() if part is not None})
    if valid is not None and isinstance(
        config.data.valid, tuple
    ):  # what was held out of the training data has no copies
        check_overlap(train, valid, "validation")
    if test is not None:
        check_overlap(train, test, "test")
    return Data(train, valid, test, elements, levels, tuple(dropped), copies)


def _levels(parts: dict[str, Dataset]) -> tuple[str, ...]:
    """The levels of theory of the training frames, in their order; those of the other parts are among them."""
    train = parts["training"]
    used = np.unique(train.table.level)
    levels = tuple(train.table.levels[k] for k in used if k >= 0) or ("default",)
    named = bool((used >= 0).any())
    for name, part in parts.items():
        for i in np.flatnonzero(part.table.level < 0)[:1]:
            # Validation and test data need no name where there is but one level.
            if len(levels) > 1 or (part is train and named):
                where = part.entries[part.entry[i]]
                raise UserError(
                    f"{where}: its level of theory is not given, while the training data hold {', '.join(levels)}; "
                    "name the level of each source"
                )
        strange = [part.table.levels[k] for k in np.unique(part.table.level) if k >= 0]
        strange = [level for level in strange if level not in levels and (levels != ("default",) or name != "training")]
        if strange:
            hint = did_you_mean(strange[0], levels)
            raise UserError(
                f"the {name} data hold the level of theory '{strange[0]}', which no training frame has; "
                f"the training data hold {', '.join(levels)}{hint}"
            )
    return levels


def _check_sources(train: Dataset, labels: list[str]) -> None:
    """Every source has at least one label that the loss asks for."""
    labelled = np.any([train.table.has(label) for label in labels], axis=0)
    for number, name in enumerate(train.entries):
        own = train.entry == number
        if own.any() and not labelled[own].any():
            raise UserError(
                f"{name}: no frame has {' or '.join(labels)}, which is all that the loss asks for; "
                "leave the source out, or name the keys of its labels"
            )


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


def make_loader(dataset: Dataset, config: RunConfig, potential: Potential, world: World) -> Loader:
    """The endless, seeded stream of this process's training batches."""
    kind, value = config.training.budget
    costs, chances = _costs(dataset, kind, potential.cutoff), frame_chances(dataset, config)
    sampler = Sampler(costs, Budget(kind, value), config.seed, world.rank, world.size, weights=chances)
    prefetch = 2 if config.training.prefetch else 0
    return Loader(dataset, sampler, potential.cutoff, prefetch=prefetch, levels=potential.levels)


def frame_chances(dataset: Dataset, config: RunConfig) -> np.ndarray | None:
    """(F,) chance of each training frame to be drawn, from shares or a sampling temperature; None: each once per epoch."""
    data, replay = config.data, config.finetune.replay
    sizes = np.bincount(dataset.entry, minlength=len(dataset.entries)).astype(float)
    own = sizes[:-1] if replay else sizes  # the replay set is the last source
    if data.sampling_temperature is not None:
        shares = own ** (1.0 / data.sampling_temperature)
    elif data.train[0].share is not None:
        shares = np.array([source.share for source in data.train], dtype=float)
    elif replay:
        shares = own
    else:
        return None
    if replay:
        shares = np.append((1.0 - replay) * shares / shares.sum(), replay)
    # A source of which no frame is left is not drawn from.
    shares = np.where(sizes > 0, shares, 0.0) / shares[sizes > 0].sum()
    return np.asarray((shares / np.maximum(sizes, 1.0))[dataset.entry])


def evaluation_loader(
    dataset: Dataset, config: RunConfig, potential: Potential, world: World
) -> tuple[Loader, list[np.ndarray]]:
    """This process's share of ``dataset``: a loader and the frame numbers of each batch."""
    kind, value = config.training.budget
    budget = Budget(kind, value)
    costs = _costs(dataset, kind, potential.cutoff)
    sampler = Sampler(costs, budget, config.seed, shuffle=False)
    loader = Loader(dataset, sampler, potential.cutoff, prefetch=0, levels=potential.levels)
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
    potential = Potential(config, data.levels)
    install(potential, statistics)
    potential.info["trained_elements"] = [symbol for symbol in data.elements if symbol in data.train.elements]
    return potential, statistics.max_neighbors


def continued(initial: Potential, config: ModelConfig, data: Data) -> Potential:
    """A copy of ``initial`` to go on with; a level of theory it does not hold starts as a copy of its first.

    Raises
    ------
    UserError
        when the configuration asks for another architecture, the data hold elements it does not know, or lack one of its levels.
    """
    for key in sorted(config.model_fields_set):
        if getattr(config, key) != getattr(initial.config, key):
            raise UserError(
                f"'model.{key}' is {getattr(config, key)}, but the model to go on with has {getattr(initial.config, key)}; drop the key"
            )
    unknown = [symbol for symbol in data.elements if symbol not in initial.elements]
    if unknown:
        raise UserError(
            f"the data hold {', '.join(unknown)}, which the model to go on with does not know; it knows {', '.join(initial.elements)}"
        )
    missing = [level for level in initial.levels if level not in data.levels]
    if missing:
        raise UserError(
            f"the model to go on with holds the level of theory {', '.join(missing)}, which no training frame has; the training "
            f"data hold {', '.join(data.levels)}: name the levels alike, or add data of {missing[0]}"
        )
    sources = [initial.levels.index(level) if level in initial.levels else 0 for level in data.levels]
    potential = adapt(initial, {}, data.levels, sources)
    trained = {*initial.trained_elements, *data.train.elements}
    potential.info = {"trained_elements": [symbol for symbol in initial.elements if symbol in trained]}
    return potential


def _one_by_one(dataset: Dataset, chosen: np.ndarray, cutoff: float) -> Iterator[Batch]:
    for i in chosen:
        yield make_batch([dataset[int(i)]], cutoff)
