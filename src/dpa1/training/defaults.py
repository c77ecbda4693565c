"""What a fine-tune does unless told otherwise: method, length, batch, learning rate and average by the amount of data."""

from __future__ import annotations

import math
from typing import Any

from dpa1.config.finetune import Method
from dpa1.config.run import RunConfig
from dpa1.config.training import BATCH_ATOMS, BUDGETS, LossConfig
from dpa1.data.dataset import Dataset
from dpa1.data.table import FrameTable
from dpa1.errors import UserError, counted
from dpa1.training.loss import LABELS

VALIDATED = 20  # frames from which a part is held out for validation
FEW = 30  # frames below which it matters of how many compositions they are
RATE = 3e-3
MANY_RATE = 3e-4  # for few frames of many compositions, which tell little of each
ENOUGH = 400  # atoms in all frames; the rate falls with the square of their number below, since fewer are soon learned by heart
LEAST_RATE = 5e-5
EPOCH = 8  # steps that see every one of few frames once, at least: many small steps learn more from them


def hold_out(config: RunConfig, frames: int) -> tuple[RunConfig, str]:
    """The fraction held out for validation where the configuration does not say, and a sentence about it."""
    if "valid" in config.data.model_fields_set:
        return config, ""
    valid = 0.1 if frames >= VALIDATED else None
    line = (
        f"validation: a tenth of the {frames} frames is held out"
        if valid
        else f"validation: none, since {counted(frames, 'frame')} (fewer than {VALIDATED}) {_is(frames)} too few to hold any out; "
        "the model is that of the last step"
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"valid": valid})}), line


def choose(config: RunConfig, train: Dataset, replayed: Dataset | None = None) -> tuple[RunConfig, list[str]]:
    """Fill in what the configuration leaves open; a sentence on each choice.

    replayed: frames of the base that are trained on, too; their labels count for the loss.

    Raises
    ------
    UserError
        when no frame has energy or forces.
    """
    frames, given, lines = len(train), config.training.model_fields_set, []
    method = config.finetune.method
    if method is None:
        method = method_for(train.table)
        why = (
            "few and of many compositions, so most of the base stays as it is"
            if method != "full"
            else "enough for all weights to learn"
            if frames >= FEW
            else "few, but of so few compositions that all weights may learn"
        )
        lines.append(f"method: {method}, because {counted(frames, 'training frame')} {_is(frames)} {why}")
        config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"method": method})})
    else:
        lines.append(f"method: {method}, as asked for")
    chosen: dict[str, Any] = {}
    if not given & {"steps", "epochs"}:
        chosen["steps"] = steps_for(frames)
    if not given.intersection(BUDGETS):
        chosen["batch_atoms"] = batch_for(train.table)
    if "learning_rate" not in given:
        chosen["learning_rate"] = rate_for(train.table)
        if scattered(train.table):
            lines.append(
                "a low learning rate, because the few frames are of many compositions, each known from hardly any"
            )
        elif chosen["learning_rate"] < RATE:
            atoms = counted(int(train.table.n_atoms.sum()), "atom")
            lines.append(
                f"a low learning rate, because {counted(frames, 'frame')} with {atoms} would soon be learned by heart"
            )
    if "ema" not in given:
        chosen["ema"] = 0.99 if chosen.get("steps", config.training.steps) < 2000 else 0.999
    config = config.model_copy(update={"training": config.training.model_copy(update=chosen)})
    training = config.training
    kind, size = training.budget
    length = f"{training.epochs:g} epochs" if training.epochs else f"{training.steps} steps"
    how = f"chosen for {counted(frames, 'frame')}: {', '.join(chosen)}" if chosen else "all as asked for"
    lines.append(
        f"{length} of {size} {kind}, learning rate {training.learning_rate:g}, average of the weights "
        f"{training.ema or 'off'} ({how})"
    )
    if "loss" not in config.model_fields_set:
        config = config.model_copy(update={"loss": _loss(train, replayed)})
        who = "the frames have" if replayed is None else "the new frames or those replayed have"
        lines.append(f"loss: {', '.join(LABELS[term] for term in config.loss.terms)}, which {who}")
    return config, lines


def method_for(table: FrameTable) -> Method:
    """The method unless one is asked for."""
    return "lora" if scattered(table) else "full"


def steps_for(frames: int) -> int:
    """Optimizer steps unless they are asked for: 10 frames 600, 100: 2000, 1,000: 6300, from 10,000 on 20000."""
    return min(20_000, max(400, 100 * round(2 * frames**0.5)))


def rate_for(table: FrameTable) -> float:
    """Learning rate unless one is asked for; low for few frames of more than half as many compositions, and for few atoms."""
    if scattered(table):
        return MANY_RATE
    share = min(1.0, int(table.n_atoms.sum()) / ENOUGH)
    return float(f"{max(LEAST_RATE, RATE * share**2):.1g}")


def scattered(table: FrameTable) -> bool:
    """Whether the frames are few and of more than half as many compositions."""
    frames = len(table)
    return frames < FEW and distinct_compositions(table) > max(1, frames / 2)


def batch_for(table: FrameTable) -> int:
    """Atoms per step unless a budget is given; of few frames an eighth, or what a frame has on average."""
    frames = len(table)
    if frames >= FEW:
        return BATCH_ATOMS
    return min(BATCH_ATOMS, math.ceil(int(table.n_atoms.sum()) / min(frames, EPOCH)))


def distinct_compositions(table: FrameTable) -> int:
    """How many reduced compositions the frames have."""
    return len({formula for formula, _ in table.formulas()})


def own_loss(config: RunConfig, train: Dataset, replayed: Dataset | None) -> LossConfig:
    """The loss without the terms of which only the replayed frames have labels."""
    if replayed is None:
        return config.loss
    own, other = train.coverage, replayed.coverage
    lacking = [term for term in config.loss.terms if not own[LABELS[term]] and other[LABELS[term]]]
    found = config.loss.model_copy(update=dict.fromkeys(lacking, (0.0, 0.0)))
    return found if found.terms else config.loss


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def _loss(train: Dataset, replayed: Dataset | None) -> LossConfig:
    own, usual = train.coverage, LossConfig()
    coverage = own if replayed is None else {label: n + replayed.coverage[label] for label, n in own.items()}
    weights = {"energy": usual.energy, "force": usual.force, "virial": (0.1, 1.0)}
    values = {term: weight if coverage[LABELS[term]] else (0.0, 0.0) for term, weight in weights.items()}
    if not any(own[LABELS[term]] for term in ("energy", "force")):
        keys = sorted(set().union(*(source.keys for source in train.report.sources)))
        there = f" (keys in the files: {', '.join(keys[:20])})" if keys else ""
        raise UserError(
            f"{', '.join(train.sources[:3])}: no training frame has energy or forces{there}, so there is nothing to learn; "
            "name the keys of the labels, e.g. --label energy=KEY --label forces=KEY"
        )
    return LossConfig(**values)
