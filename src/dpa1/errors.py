"""The one exception a user is meant to read: a sentence that names what is wrong and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A call, file or option is wrong; the command line prints the sentence and exits with code 2."""


class RunError(Exception):
    """A run that began correctly failed (e.g. a non-finite loss); the command line exits with code 1."""


class InterruptedRunError(RunError):
    """A signal ended a run, which can be continued; nothing failed, so no trace is kept."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` – did you mean 'x'?`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" – did you mean '{near[0]}'?" if near else ""


def counted(n: int, what: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def needs(package: str, extra: str, purpose: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{purpose} needs the package '{package}': install it with  pip install 'dpa1[{extra}]'")
