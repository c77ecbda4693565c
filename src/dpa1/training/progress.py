"""What a person sees of a run: a bar on a terminal or in a notebook, plain lines in a log; train.log always."""

from __future__ import annotations

import math
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dpa1.units import TRAINED

LINE_SECONDS = 5.0  # at most one plain line in this time


class Report:
    """Speaks to the screen and, once ``open_log`` was called, to ``train.log``.

    Parameters
    ----------
    quiet: nothing on the screen.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._log: TextIO | None = None
        self._waiting = ""
        self._bar: Progress | None = None
        self._task: Any = None
        self._begun = self._spoken = time.perf_counter()
        self._first = self._total = 0

    def open_log(self, folder: Path) -> None:
        """From now on write ``folder/train.log``, beginning with what was said before."""
        self._log = (folder / "train.log").open("a", encoding="utf-8")
        self._log.write(self._waiting)
        self._log.flush()

    def say(self, text: str) -> None:
        """One message, on the screen and in the log; nothing when it is empty."""
        if not text:
            return
        self.console.print(text, markup=False)
        self.note(text)

    def note(self, text: str) -> None:
        """One message for the log alone."""
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        stamped = "".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""])
        if self._log is None:
            self._waiting += stamped
        else:
            self._log.write(stamped)
            self._log.flush()

    def start(self, first: int, total: int) -> None:
        """The loop begins at step ``first`` of ``total``."""
        self._begun = self._spoken = time.perf_counter()
        self._first, self._total = first, total
        if _can_redraw(self.console) and not self.console.quiet:
            self._bar = Progress(
                TextColumn("training"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
                console=self.console, refresh_per_second=4,
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=total, completed=first, text="")
            self._bar.start()

    def row(self, values: dict[str, float]) -> None:
        """The loop has new numbers."""
        step = int(values["step"])
        elapsed = time.perf_counter() - self._begun
        rate = (step - self._first) / max(elapsed, 1e-9)
        text = f"{_rate(rate)}, {_duration((self._total - step) / max(rate, 1e-9))} left, {_errors(values)}"
        line = f"step {step:>{len(str(self._total))}}/{self._total}  {text}"
        self.note(line)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            if not math.isnan(values.get("valid_loss", math.nan)):
                self.console.print(line, markup=False)
        else:
            now = time.perf_counter()
            if now - self._spoken > LINE_SECONDS or step == self._total or "valid_loss" in values:
                self.console.print(line, markup=False)
                self._spoken = now

    def advance(self, step: int) -> None:
        """Move the bar between rows."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def stop(self) -> None:
        """The loop has ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """No more messages."""
        self.stop()
        if self._log is not None:
            self._log.close()
            self._log = None


def _can_redraw(console: Console) -> bool:
    """A terminal can; a notebook only with ipywidgets, without which rich shows nothing."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal


def _errors(values: dict[str, float]) -> str:
    """``energy 1.2 | 1.4 meV/atom, force 31 | 35 meV/Å``: training | validation."""
    parts = []
    for quantity, (factor, unit) in TRAINED.items():
        numbers = [values.get(f"{part}_{quantity}_rmse", math.nan) for part in ("train", "valid")]
        if not all(math.isnan(x) for x in numbers):
            shown = " | ".join(f"{factor * x:.4g}" for x in numbers if not math.isnan(x))
            parts.append(f"{quantity} {shown} {unit}")
    return ", ".join(parts)


def _rate(rate: float) -> str:
    return f"{rate:.3g} steps/s" if rate >= 1 or rate == 0 else f"{1 / rate:.3g} s/step"


def _duration(seconds: float) -> str:
    seconds = int(min(seconds, 359_999))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
