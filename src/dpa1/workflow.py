"""Training with everything around it: the run, then its report page. Above training and analysis, which do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa1.training.run import Outcome, RunResult
from dpa1.training.run import train as run_training

if TYPE_CHECKING:
    from dpa1.analysis.page import Section
    from dpa1.config.run import RunConfig


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
    return run_training(config, resume=resume, quiet=quiet, finished=report)


def report(outcome: Outcome, sections: Sequence[Section] = (), name: str = "report.html") -> str:
    """Write the page of a finished run. Returns the sentence to say; a page that fails never fails the run.

    sections: further parts of the page, as ``write_report`` takes them.
    """
    path = outcome.folder / name
    try:
        _write(outcome, path, sections)
    except Exception as error:
        return f"warning: {path} was not written ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return f"report: {path}"


def _write(outcome: Outcome, path: Path, sections: Sequence[Section]) -> None:
    from dpa1.analysis.report import Evaluated, sample, survey, write_report

    data = outcome.data
    every = {"training": data.train, "validation": data.valid, "test": data.test}
    parts = {name: part for name, part in every.items() if part is not None}
    evaluated: list[Evaluated] = []
    for name, key in (("test", "test"), ("validation", "valid")):
        if name in parts and outcome.errors.get(key):
            chosen, note = sample(parts[name])
            frames = (parts[name][int(i)] for i in chosen)
            evaluated.append(survey(outcome.potential, frames, name, result=outcome.errors[key], note=note))
    if not evaluated:
        chosen, _ = sample(data.train)
        frames = (data.train[int(i)] for i in chosen)
        note = (
            f"There are no validation or test data: these are {len(chosen):,} of {len(data.train):,} training frames."
        )
        evaluated.append(survey(outcome.potential, frames, "training", note=note))
    parameters = sum(p.numel() for p in outcome.potential.parameters())
    config = outcome.folder / "config.yaml"
    write_report(
        path,
        title=f"Training run {outcome.folder.resolve().name}",
        evaluated=evaluated,
        metrics=outcome.folder / "metrics.csv",
        sections=sections,
        data=parts,
        facts=[
            ("steps", f"{outcome.steps:,}"),
            ("time in the training loop", f"{outcome.seconds:,.0f} s"),
            ("parameters", f"{parameters:,}"),
            ("model", str(outcome.folder / "model.dpa1")),
        ],
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )
