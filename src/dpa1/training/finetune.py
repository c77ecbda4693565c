"""Start a run from a trained model: what comes from it, what the new data change before the first step, what it forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dpa1.config.run import RunConfig
from dpa1.data.dataset import Dataset, LevelledDataset, ListDataset, with_entry
from dpa1.data.loader import Loader
from dpa1.data.outliers import Dropped
from dpa1.data.overlap import check_overlap, hold_out, overlap
from dpa1.data.parts import Parts, open_data
from dpa1.errors import UserError, counted
from dpa1.model.adapt import adapt, parents
from dpa1.model.file import digest_of
from dpa1.model.potential import Potential
from dpa1.training import bias, defaults, finish
from dpa1.training.distributed import World
from dpa1.training.lowrank import MEANING, choose_parameters
from dpa1.training.prepare import Data, check, evaluation_loader, sample
from dpa1.training.residual_bias import fit_shift
from dpa1.units import TRAINED

NEW_LEVEL = "finetuned"
KEPT = ("trained_elements", "licence")  # of what a base says about itself
# With replay, one in so many frames of each level in the replay set is left out of training, to measure forgetting.
MEASURED = 4
FORGOTTEN = 1.2  # times the base's force error on its replay set, from which on it is said


@dataclass
class Change:
    """What a fine-tune changed, for tables and the report.

    Attributes
    ----------
    base: name of the base.  method: what learned.  new: new element → element it started from.
    start: what is compared with: the base, with its energy bias refitted where there are energies.
    before, after: part (valid, test) → errors of ``start`` and of the finished model.
    forgotten: errors on the base's replay set, before and after, both with the base's own energy bias; empty without one.
    bias_tables: when → table of that refit of the energy bias.
    """

    base: str
    method: str
    new: dict[str, str]
    start: str = "base"
    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    forgotten: dict[str, dict[str, Any]] = field(default_factory=dict)
    bias_tables: dict[str, str] = field(default_factory=dict)


class Finetune:
    """One fine-tune, from its base to the comparison at the end; everything is checked when it is made.

    Parameters
    ----------
    config: its ``finetune`` section names the base, which ``base`` is.

    Attributes
    ----------
    config: the same with everything filled in.  data: the data of the run.  lines: sentences on what was chosen.

    Raises
    ------
    UserError
        wrong data; a base that is not the one of the configuration; a level the base does not hold, or none named where it
        holds several; a model section that contradicts the base; a replay set asked for that is not there; test frames that are training frames.
    """

    def __init__(self, config: RunConfig, base: Potential) -> None:
        self.name, self.base = str(config.finetune.base), base
        if base.tables is not None:
            raise UserError(f"{self.name}: is tabulated; fine-tune the model it was made of")
        config = _with_digest(config, base, self.name)
        self.source = _source_level(base, self.name, config.finetune.level)
        _check_model(config, base, self.name)
        if config.finetune.replay and not base.replay:
            raise UserError(f"{self.name}: carries no replay set, so its data cannot be replayed; leave --replay out")
        parts, config, lines = _open(config)
        replayed, self.measured = self._replay(config.finetune.replay)
        config, chosen = defaults.choose(config, parts.train, replayed)
        own = {
            "model": config.model.model_copy(update={"elements": None}),
            "loss": defaults.own_loss(config, parts.train, replayed),
        }
        checked = check(config.model_copy(update=own), parts, base.elements)
        if len(checked.levels) > 1:
            raise UserError(
                f"the data hold the levels of theory {', '.join(checked.levels)}; fine-tune on one of them at a time"
            )
        self.levels, self.sources, self.target = self._levels(config, checked.levels[0])
        self.new = parents(base, [s for s in checked.elements if s in _symbols(parts)])
        self.data = self._data(checked, replayed)
        lines += self._known_to_base(config, trained_again=replayed is not None)
        self.config = config
        method = config.finetune.method
        assert method is not None
        self.change = Change(self.name, method, self.new)
        self.lines = [*self._said(), *lines, *chosen, f"{method}: {MEANING[method]}"]

    def _levels(self, config: RunConfig, own: str) -> tuple[tuple[str, ...], tuple[int, ...], str]:
        """Names of the model's levels, the base's level each is a copy of, and which of them the new data have."""
        base, wanted = self.base, config.finetune.new_level
        if not config.finetune.replay:
            target = wanted or (own if own != "default" else base.levels[self.source])
            return (target,), (self.source,), target
        if wanted in base.levels:
            raise UserError(
                f"the base keeps its level of theory '{wanted}' for its replay set; give the new data another --new-level"
            )
        target = wanted or (own if own not in ("default", *base.levels) else NEW_LEVEL)
        return (*base.levels, target), (*range(len(base.levels)), self.source), target

    def _replay(self, share: float) -> tuple[Dataset | None, Dataset | None]:
        """The frames of the replay set to train on, and those to measure forgetting with."""
        frames = self.base.replay
        if not frames:
            return None, None
        if not share:
            return None, ListDataset(frames)
        if len(frames) < 2:
            raise UserError(
                f"{self.name}: a replay set of one frame cannot be trained on and measured; leave --replay out"
            )
        held = _measured([frame.level for frame in frames])
        return (
            ListDataset([f for f, h in zip(frames, held, strict=True) if not h]),
            ListDataset([f for f, h in zip(frames, held, strict=True) if h]),
        )

    def _data(self, checked: Data, replayed: Dataset | None) -> Data:
        train, valid, test = (
            None if part is None else LevelledDataset(part, self.target)
            for part in (checked.train, checked.valid, checked.test)
        )
        assert train is not None
        whole: Dataset = train if replayed is None else with_entry(train, replayed, "replay set")
        elements = (*self.base.elements, *(symbol for symbol in self.new if symbol not in self.base.elements))
        return Data(whole, valid, test, elements, self.levels, checked.dropped, checked.copies)

    def _known_to_base(self, config: RunConfig, trained_again: bool) -> list[str]:
        """A line on test frames that the base was trained on, as far as its replay set tells.

        Raises
        ------
        UserError
            when they are trained on again, and for such validation files.
        """
        if not self.base.replay:
            return []
        replay, test = LevelledDataset(ListDataset(self.base.replay), self.target), self.data.test
        if trained_again and self.data.valid is not None and isinstance(config.data.valid, tuple):
            check_overlap(replay, self.data.valid, "validation")
        if test is None:
            return []
        if trained_again:
            check_overlap(replay, test, "test")
            return []
        known = len(overlap(replay, test))
        what = f"{known} of the {counted(len(test), 'test frame')}"
        return [f"note: the base was trained on {what}, which its replay set holds"] if known else []

    def _said(self) -> list[str]:
        base = self.base
        said = [f"fine-tuning {self.name}: {len(base.elements)} elements, cutoff {base.cutoff:g} Å"]
        if len(base.levels) > 1 or self.target != base.levels[self.source]:
            said.append(f"level of theory: {self.target}, from the base's {base.levels[self.source]}")
        if len(self.levels) == 1 and len(base.levels) > 1:
            said.append("the base's other levels of theory are left out; --replay would keep them")
        said += [f"new element {symbol} starts from {parent}" for symbol, parent in self.new.items()]
        if self.measured is None:
            said.append("the base carries no replay set, so what it forgets is not measured")
        return said

    def model(self) -> Potential:
        """The base made ready for the new data."""
        torch.manual_seed(self.config.seed)
        potential = adapt(self.base, self.new, self.levels, self.sources)
        potential.info = {key: value for key, value in potential.info.items() if key in KEPT}
        if len(self.levels) > 1:
            potential.replay = self.base.replay
        choose_parameters(potential, self.change.method, tuple(self.new))  # type: ignore[arg-type]
        return potential

    def isolated(self) -> list[dict[str, float]]:
        """Per level the isolated atoms to hold exact; those of the base's own levels stay as they are."""
        found = bias.pinned_energies(self.data.train, self.config, self.levels)
        return [values if level == self.target else {} for level, values in zip(self.levels, found, strict=True)]

    @torch.no_grad()
    def refit(self, potential: Potential, train: Loader, pins: bias.Pins | None, world: World) -> str:
        """Shift the energy bias of the new level by what the model leaves of the training energies. Returns the table."""
        config, level, data = self.config, self.levels.index(self.target), self.data.train
        title = "energy bias, refitted to the residuals of the model"
        before = potential.energy_bias[level].cpu().numpy().copy()
        if pins:
            pins.fold(potential)
        given = bias.set_given(potential, config)[level]
        chosen = bias.frames_of_level(data, self.levels, level)
        chosen = chosen[np.isfinite(data.table.energy[chosen])]
        if not len(chosen):
            return f"{title}: no training frame has an energy, so it stays as it is"
        places = sample(data.subset(chosen), config.training.statistics_frames, config.seed, bias.SAMPLE_ATOMS)
        counts, residuals = bias.residuals(potential, data, chosen[places], train, world)
        held = dict.fromkeys([*(pins.symbols[level] if pins else ()), *given], 0.0)
        found = fit_shift(counts, residuals, potential.elements, held)
        potential.energy_bias[level] += torch.from_numpy(found.shift).to(potential.energy_bias)
        self.change.start = "base, bias refitted"
        first = not self.change.bias_tables
        text = found.table(before, potential.energy_bias[level].cpu().numpy(), tuple(self.new) if first else ())
        self.change.bias_tables["before the first step" if first else "after the last step"] = text
        return f"{title}\n{text}"

    def begin(self, potential: Potential, train: Loader, pins: bias.Pins | None, world: World,
              valid: tuple[Loader, list[np.ndarray]] | None) -> str:  # fmt: skip
        """Before the first step: refit the bias, measure the base. Returns what to say."""
        said = self.refit(potential, train, pins, world)
        self.change.before = finish.evaluate_parts(potential, self.data, self.config, world, valid)
        if self.measured is not None:
            original = adapt(self.base, self.new, self.base.levels, range(len(self.base.levels))).to(world.device)
            self.change.forgotten["before"] = self._on_replay(original, world)
        return said

    def end(self, potential: Potential, errors: dict[str, dict[str, Any]], world: World) -> str:
        """After the last step: what changed on the new data and on the replay set, for the model file. Returns a table."""
        self.change.after = errors
        if self.measured is not None:
            self.change.forgotten["after"] = self._on_replay(self._as_base(potential).to(world.device), world)
        potential.info["finetuned"] = self._summary()
        return table(self.change)

    def _summary(self) -> dict[str, Any]:
        """What the model file says of it."""
        kinds = ("energy_rmse", "force_rmse", "virial_rmse", "n_frames")
        forgotten = {
            when: {key: errors[key] for key in kinds if errors[key] == errors[key]}
            for when, errors in self.change.forgotten.items()
        }
        return {
            "base": self.name,
            "base_level": self.base.levels[self.source],
            "method": self.change.method,
            "new_elements": self.new,
            "replay": self.config.finetune.replay,
            "replay_errors": forgotten,
        }

    def _as_base(self, potential: Potential) -> Potential:
        """The model as the base's levels see it: its networks, with the base's energy bias where it has none for them."""
        if len(self.levels) > 1:
            return potential
        whole = adapt(self.base, self.new, self.base.levels, range(len(self.base.levels)))
        whole.descriptor.load_state_dict(potential.descriptor.state_dict())
        heads = [whole.fitting, *whole.level_fittings]
        heads[self.source if len(heads) > 1 else 0].load_state_dict(potential.fitting.state_dict())
        return whole

    def _on_replay(self, potential: Potential, world: World) -> dict[str, Any]:
        assert self.measured is not None
        return finish.measure_errors(potential, evaluation_loader(self.measured, self.config, potential, world), world)


def _measured(levels: Sequence[str | None]) -> np.ndarray:
    """Which frames of a replay set serve to measure: of each level one in ``MEASURED``, drawn alike every time; at least one."""
    held, rng = np.zeros(len(levels), dtype=bool), np.random.default_rng(0)
    for level in dict.fromkeys(levels):
        own = np.array([k for k, other in enumerate(levels) if other == level])
        held[rng.permutation(own)[: len(own) // MEASURED]] = True
    held[-1] |= not held.any()
    return held


def table(change: Change) -> str:
    """Errors before and after, in meV and Å."""
    rows: list[tuple[str, str, dict[str, Any]]] = []
    for part, title in (("valid", "validation"), ("test", "test")):
        if change.after.get(part):
            rows += [(title, change.start, change.before[part]), ("", "fine-tuned", change.after[part])]
    if change.forgotten:
        rows += [("replay set", "base", change.forgotten["before"]), ("", "fine-tuned", change.forgotten["after"])]
    if not rows:
        return "before and after: not measured, since there are no validation or test data"
    lines = [
        f"{'RMSE':<12}{'':<22}{'frames':>8}" + "".join(f"{q + ' ' + unit:>18}" for q, (_, unit) in TRAINED.items())
    ]
    for title, who, errors in rows:
        cells = "".join(f"{_cell(factor * errors[f'{q}_rmse']):>18}" for q, (factor, _) in TRAINED.items())
        lines.append(f"{title:<12}{who:<22}{errors['n_frames']:>8}{cells}")
    if change.forgotten:
        lines.append("replay set: frames the base was trained on, with the base's energy bias")
        lines += _forgotten(change.forgotten)
    return "\n".join([*lines, *_worse(change)])


def _forgotten(errors: dict[str, dict[str, Any]]) -> list[str]:
    """A line where the force error on the replay set grew to more than ``FORGOTTEN`` times that of the base."""
    before, after = (errors[when]["force_rmse"] for when in ("before", "after"))
    if not after > FORGOTTEN * before:
        return []
    return [
        f"note: on data like the base's own the force error is {after / before:.1f} times that of the base; where that matters, "
        "a larger --replay keeps more of what the base knew"
    ]


def _worse(change: Change) -> list[str]:
    """A line for each part of the data on which fine-tuning made something worse."""
    lines = []
    for part, title in (("valid", "validation"), ("test", "test")):
        after, before = change.after.get(part) or {}, change.before.get(part) or {}
        worse = [q for q in ("force", "energy", "virial") if after.get(f"{q}_rmse", 0.0) > before.get(f"{q}_rmse", 0.0)]
        if worse:
            lines.append(
                f"warning: the {title} data's {' and '.join(worse)} errors are larger than the base's: the training frames are "
                "too few or too unlike them; add frames like them, or take fewer steps"
            )
    return lines


def _cell(value: float) -> str:
    return "–" if value != value else f"{value:.4g}"


def _source_level(base: Potential, name: str, level: str | None) -> int:
    try:
        return base.level_index(level)
    except UserError:
        if level is not None:
            raise
    raise UserError(
        f"{name}: holds several levels of theory ({', '.join(base.levels)}); name the one that is nearest to the new data "
        f"with --level, e.g. --level {base.levels[0]}"
    )


def _with_digest(config: RunConfig, base: Potential, name: str) -> RunConfig:
    """The configuration with the base's digest, which must be the one it names."""
    digest, given = digest_of(base), config.finetune.digest
    if given not in (None, digest):
        raise UserError(
            f"the base {name} is not the one of this configuration: 'finetune.digest' is {given}, the base has {digest}; "
            "use the old one (another version of dpa1 may come with another model), or drop the key and start a new run"
        )
    return config.model_copy(update={"finetune": config.finetune.model_copy(update={"digest": digest})})


def _check_model(config: RunConfig, base: Potential, name: str) -> None:
    """Whatever the model section says must be what the base is."""
    for key in sorted(config.model.model_fields_set - {"elements", "size"}):
        value, own = getattr(config.model, key), getattr(base.config, key)
        if value is not None and value != own:
            raise UserError(
                f"'model.{key}' is {value}, but the base {name} has {own}; drop the key, or use another base"
            )
    missing = [symbol for symbol in base.elements if symbol not in (config.model.elements or base.elements)]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"'model.elements' lacks {shown} of the base {name}; drop the key")


def _open(config: RunConfig) -> tuple[Parts, RunConfig, list[str]]:
    """The data, with a part held out for validation where nothing is said about it and the frames suffice."""
    if "valid" in config.data.model_fields_set:
        return open_data(config.data, config.seed), config, []
    none = config.model_copy(update={"data": config.data.model_copy(update={"valid": None})})
    parts = open_data(none.data, config.seed)
    dropped: list[Dropped] = parts.dropped
    config, line = defaults.hold_out(config, len(parts.train))
    if isinstance(config.data.valid, float):
        train, valid, copies = hold_out(parts.train, config.data.valid, config.seed)
        parts = Parts(train, valid, parts.test, dropped, copies)
        if valid is None:
            config = none
            line = "validation: none, since all frames are copies of one; the model is that of the last step"
    return parts, config, [line]


def _symbols(parts: Parts) -> Sequence[str]:
    return [symbol for part in (parts.train, parts.valid, parts.test) if part is not None for symbol in part.elements]
