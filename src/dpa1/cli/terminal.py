"""What the verbs share: where output may go, where a trace lies, and a progress line for terminals and logs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dpa1.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_trace_folder: list[Path] = []


def keep_trace_in(folder: Path) -> None:
    """From now on the trace of a failure goes to this folder (a run's directory)."""
    _trace_folder[:] = [folder]


def forget_trace_folder() -> None:
    """A new call begins."""
    _trace_folder.clear()


def write_trace(error: BaseException) -> Path:
    """Write the full trace of ``error`` where the run keeps its files, or else here or in the temporary folder."""
    name = time.strftime("dpa1-error-%Y%m%d-%H%M%S.log")
    text = "".join(traceback.format_exception(error))
    for folder in (*_trace_folder, Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return (folder / name).absolute()
    return Path("nowhere: no folder is writable")


def check_new(path: Path) -> None:
    """An output folder that holds files already is an error, so nothing is ever overwritten."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, not a folder; choose another with --output")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: this output folder already holds files; choose another with --output or remove it")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Where to write what ``output`` is to hold: that folder appears only when everything in it is complete."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be created ({error.strerror}); choose another with --output") from None
    try:
        yield part
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def new_file(path: Path) -> Path:
    """An output file that does not exist yet, in a folder that does."""
    if path.exists():
        raise UserError(f"{path}: already exists; choose another with --output or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it or choose another with --output")
    return path


def draw(make: Callable[[], Figure], path: Path) -> None:
    """Save a picture; without matplotlib only a line is printed, since the numbers are there all the same."""
    from dpa1.analysis.plots import save

    try:
        save(make(), path)
    except UserError as error:
        print(f"{path.name} was not drawn: {error}", file=sys.stderr)


def to_json(value: Any) -> str:
    """Indented JSON; numbers that are not finite become null, since JSON has none."""

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): clean(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [clean(entry) for entry in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(clean(value), indent=2, ensure_ascii=False)


class Progress:
    """One line that rewrites itself on a terminal; in a log a plain line every so often. Both: rate and time left.

    Parameters
    ----------
    total: number of steps (or frames…); None when not known.
    unit: what is counted.
    interval: seconds between lines in a log.
    """

    def __init__(self, total: int | None, unit: str, *, done: int = 0, interval: float = 10.0) -> None:
        self.total, self.unit, self.interval = total, unit, interval
        self.stream: TextIO = sys.stderr
        self.terminal = self.stream.isatty()
        self.first, self.start, self.last, self._width = done, time.monotonic(), time.monotonic(), 0

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` units are finished, with anything worth saying after it."""
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else self.interval) and done != self.total:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.start, 1e-9)
        parts = [f"{done}/{self.total} {self.unit}" if self.total else f"{done} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:.3g} {self.unit}/s")
            if self.total and done < self.total:
                parts.append(f"{duration((self.total - done) / rate)} left")
        line = "  ".join([*parts, text])
        if self.terminal:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line on a terminal."""
        if self.terminal and self._width:
            self.stream.write("\n")


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
