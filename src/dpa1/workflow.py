"""Training with everything around it: the run, then its report page. Above training and analysis, which do not meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa1.config.finetune import OUTPUT
from dpa1.config.run import RunConfig, config_from, load_config, read_values
from dpa1.errors import UserError
from dpa1.interop.load import load_potential
from dpa1.training.run import Outcome, RunResult
from dpa1.training.run import train as run_training

if TYPE_CHECKING:
    from dpa1.analysis.page import Section

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def train(config: RunConfig | dict[str, Any] | str | Path, *, resume: bool = False, quiet: bool = False) -> RunResult:
    """Train a potential as ``config`` (or the file it names) says, and write ``report.html`` into the run folder.

    Parameters
    ----------
    resume: continue the interrupted run in the output folder exactly where its last checkpoint stands.
    quiet: nothing on the screen; ``train.log`` is written all the same.

    Raises
    ------
    UserError
        when configuration or data are wrong, or the output folder already holds a run; nothing is overwritten.
    RunError
        when a loss or gradient is not finite, or a signal stopped the run; the sentence names the checkpoint.
    """
    if isinstance(config, str | Path):
        config = load_config(config)
    elif isinstance(config, dict):
        config = config_from(config, "configuration")
    base = load_potential(config.finetune.base) if config.finetune.base else None
    return run_training(config, resume=resume, quiet=quiet, finished=report, base=base)


def finetune(
    base: str | Path,
    data: Paths,
    *,
    output: str | Path | None = None,
    valid: Paths | float | None = None,
    test: Paths | None = None,
    method: str | None = None,
    level: str | None = None,
    new_level: str | None = None,
    replay: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    config: dict[str, Any] | str | Path | None = None,
    quiet: bool = False,
) -> RunResult:
    """Fine-tune a trained model on new data; what is not given is chosen by the amount of data and said.

    Parameters
    ----------
    base: ``.dpa1`` or DeePMD-kit file, or the name of a shipped model.
    data, valid, test: what ``dpa1.read`` takes; ``valid`` may be the fraction to hold out, 0 for none.
    output: run folder, which must not hold a run; ``finetuned`` unless ``config`` says otherwise.
    method: ``full``, ``freeze``, ``heads`` or ``lora``.
    level: level of theory of the base to start from.  new_level: name of the new data's level.
    replay: share of the frames drawn from the replay set inside the base, so that it is not forgotten; none unless asked for.
    config: further sections as for ``train``, a mapping or a file; arguments that are given win.

    Raises
    ------
    UserError
        as ``train``; also for a base or a replay set that does not fit, and test frames that are training frames.
    """
    values: dict[str, Any] = dict(read_values(config) if isinstance(config, str | Path) else config or {})
    where = str(config) if isinstance(config, str | Path) else "fine-tuning"
    _check_own(values, base, data, where)
    share = float(valid) if isinstance(valid, int | float) else _paths(valid)
    parts = {"train": _paths(data), "valid": share, "test": _paths(test)}
    values["data"] = {**_section(values, "data", where), **_given(parts)}
    asked = {"base": str(base), "method": method, "level": level, "new_level": new_level, "replay": replay}
    values["finetune"] = {**_section(values, "finetune", where), **_given(asked)}
    chosen = _given({"steps": steps, "learning_rate": learning_rate})
    values["training"] = {**_section(values, "training", where), **chosen}
    folder = None if output is None else str(output)
    values = {"output": OUTPUT, **values, **_given({"output": folder, "seed": seed})}
    complete = config_from(values, where)
    if (Path(complete.output) / "config.yaml").exists():
        raise UserError(
            f"{complete.output}: already holds a run; choose another --output, or continue it with  "
            f"dpa1 train {Path(complete.output) / 'config.yaml'} --resume"
        )
    return train(complete, quiet=quiet)


def _section(values: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    section = values.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{where}: '{name}' holds keys and values, not {section!r}")
    return section


def _check_own(values: dict[str, Any], base: str | Path, data: Paths, where: str) -> None:
    """A configuration beside the call names no other base and no other training data, which could never be used."""
    for section, key, own in (("finetune", "base", str(base)), ("data", "train", _paths(data))):
        named = _section(values, section, where).get(key)
        if named is not None and named != own and [named] != own:
            raise UserError(
                f"{where}: '{section}.{key}' is {named}, the call says {own}; remove it from the configuration"
            )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _paths(given: Paths | None) -> list[str] | None:
    if given is None:
        return None
    try:
        return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(path) for path in given]
    except TypeError:
        raise UserError("data are named by paths; write frames to a file first, as ase.io.write does") from None


def report(outcome: Outcome) -> str:
    """Write the page of a finished run. Returns the sentence to say; a page that fails never fails the run."""
    path = outcome.folder / "report.html"
    try:
        _write(outcome, path)
    except Exception as error:
        return f"warning: {path} was not written ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return f"report: {path}"


def _changes(outcome: Outcome) -> list[Section]:
    """Of a fine-tune: errors before and after, and what was forgotten."""
    from dpa1.analysis.page import Section
    from dpa1.analysis.report import error_table

    change = outcome.change
    if change is None:
        return []
    new = [f"The new element {symbol} started from {parent}." for symbol, parent in change.new.items()]
    tables = [
        error_table({change.start: change.before[part], "fine-tuned": change.after[part]}, f"{name} data")
        for part, name in (("valid", "Validation"), ("test", "Test"))
        if change.after.get(part)
    ]
    none = [] if tables else ["Errors before and after are not measured: there are no validation or test data."]
    sections = [
        Section(
            "Before and after",
            [f"Fine-tuned from {change.base}, method {change.method}.", *new, *none],
            tables=tables,
            details=[(f"Energy bias, {when}", text) for when, text in change.bias_tables.items()],
        )
    ]
    if change.forgotten:
        text = "Errors on the base's replay set, frames it was trained on, with its own energy bias."
        rows = {"base": change.forgotten["before"], "fine-tuned": change.forgotten["after"]}
        sections.append(Section("Forgetting", [text], tables=[error_table(rows)]))
    else:
        sections.append(Section("Forgetting", ["Not measured: the base carries no replay set."]))
    return sections


def _write(outcome: Outcome, path: Path) -> None:
    from dpa1.analysis.report import Evaluated, sample, survey, write_report
    from dpa1.data.outliers import summary

    data = outcome.data
    every = {"training": data.train, "validation": data.valid, "test": data.test}
    parts = {name: part for name, part in every.items() if part is not None}
    evaluated: list[Evaluated] = []
    data_notes = summary(data.dropped).split("\n") if data.dropped else []
    for name, key in (("test", "test"), ("validation", "valid")):
        if name in parts and outcome.errors.get(key):
            chosen, note = sample(parts[name])
            if not len(chosen):
                data_notes.append(f"The {name} data have no labels, so there are no errors on them.")
                continue
            frames = (parts[name][int(i)] for i in chosen)
            evaluated.append(survey(outcome.potential, frames, name, result=outcome.errors[key], note=note))
    if not evaluated:
        chosen, _ = sample(data.train)
        frames = (data.train[int(i)] for i in chosen)
        note = f"There are no labelled validation or test data: these are {len(chosen):,} of {len(data.train):,} training frames."
        evaluated.append(survey(outcome.potential, frames, "training", note=note))
    parameters = sum(p.numel() for p in outcome.potential.parameters())
    config = outcome.folder / "config.yaml"
    write_report(
        path,
        title=f"{'Fine-tuning' if outcome.change else 'Training'} run {outcome.folder.resolve().name}",
        evaluated=evaluated,
        metrics=outcome.folder / "metrics.csv",
        sections=_changes(outcome),
        data=parts,
        data_notes=data_notes,
        facts=[
            ("steps", f"{outcome.steps:,}"),
            ("time in the training loop", f"{outcome.seconds:,.0f} s"),
            ("parameters", f"{parameters:,}"),
            ("elements", " ".join(outcome.potential.elements)),
            ("levels of theory", ", ".join(outcome.potential.levels)),
            ("seed", str(outcome.config.seed)),
            ("model", str(outcome.folder / "model.dpa1")),
        ],
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )
