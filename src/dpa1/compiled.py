"""Loops over numbers compiled to machine code by numba when first called, and kept on disk where that can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

log = logging.getLogger("dpa1")
# Sums over channels may be regrouped, which vector instructions need; infinities and NaN stay what they are.
REGROUPED = frozenset({"reassoc", "contract", "nsz"})


@cache
def available() -> bool:
    """Whether numba can be used; where not, the reason is said once."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # it refuses a numpy it does not know by more than one kind of exception
        log.warning(
            "numba cannot be used (%s): slower torch operations run instead of compiled loops; "
            "a numba that fits your numpy helps: pip install -U numba",
            error,
        )
        return False
    return True


def loops(function: Callable[..., None]) -> Callable[..., None]:
    """The compiled function; it lets go of the interpreter's lock, so each thread may run its own."""

    def call(*arguments: Any) -> None:
        _compiled(function)(*arguments)

    return call


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    import numba

    options: Any = {"nogil": True, "fastmath": set(REGROUPED), "error_model": "numpy"}
    try:
        found: Callable[..., None] = numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        found = numba.njit(function, **options)
    return found
