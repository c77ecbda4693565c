"""One run folder, one run: a second one that would write to the same files is refused."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from dpa1.errors import UserError

log = logging.getLogger(__name__)


def lock(folder: Path) -> FileLock:
    """Hold ``folder`` until ``release()``, or until this process ends in whatever way.

    Raises
    ------
    UserError
        when another process holds it.
    """
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another run is writing to it; wait for its end, or stop it, or choose another output"
        ) from None
    except NotImplementedError:
        log.warning("%s: its file system has no locks, so a second run on it would go unnoticed", folder)
    return held
