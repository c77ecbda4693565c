"""Continue a run: only with the configuration it began with, for anything else would be another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa1.config.run import RunConfig, load_config
from dpa1.errors import UserError
from dpa1.training.checkpoint import last_step
from dpa1.training.schedule import Schedule

# What may differ, because it does not change the numbers of a run.
FREE = {"output", "loggers", *(f"training.{key}" for key in ("device", "threads", "prefetch"))}
FREE |= {f"training.{key}" for key in ("keep_checkpoints", "checkpoint_every")}
LENGTH = {
    "training.steps",
    *(f"training.schedule.{key}" for key in ("kind", "decay_fraction", "decay_form", "stop", "stop_ratio")),
}


def stored_config(folder: Path, given: RunConfig) -> RunConfig:
    """The complete configuration of the run in ``folder``, with the free settings of ``given``.

    The length of a run and the form of its decay are free, too, as long as its learning rate is still constant.

    Raises
    ------
    UserError
        when another setting of ``given`` differs; the sentence names it and both values.
    """
    path = folder / "config.yaml"
    stored = load_config(path)
    old, new = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    free = FREE | (LENGTH if _may_change_length(folder, stored, given) else set())
    for key, value in new.items():
        # None was filled in from the data or by default, and epochs became steps.
        derived = value is None or key == "training.epochs" or (key == "training.steps" and given.training.epochs)
        if key not in free and not derived and old.get(key) != value:
            raise UserError(
                f"{path}: '{key}' is {old.get(key)} in the run to resume but {value} now; "
                "set it back, or start a new run in another output folder"
            )
    training: dict[str, Any] = {
        key.split(".")[1]: getattr(given.training, key.split(".")[1]) for key in FREE if "." in key
    }
    if free > FREE:
        training |= {"steps": given.training.steps, "schedule": given.training.schedule}
    return stored.model_copy(
        update={
            "output": given.output,
            "loggers": given.loggers,
            "training": stored.training.model_copy(update=training),
        }
    )


def _may_change_length(folder: Path, stored: RunConfig, given: RunConfig) -> bool:
    """Whether the steps done so far would have been the same in the run that is asked for now."""
    done = last_step(folder / "checkpoints")
    if given.training.epochs is not None or done is None or given.training.steps <= done:
        return False
    old, new = Schedule(stored.training), Schedule(given.training)
    return old.warmup == new.warmup and done <= min(old.constant_until, new.constant_until)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out.update(_flat(value, f"{name}."))
        else:
            out[name] = value
    return out
