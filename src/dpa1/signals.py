"""Ctrl-C and SIGTERM end a run after the step in hand, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event that the loop looks at; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    stopping = False

    def handle(number: int, frame: Any) -> None:
        nonlocal stopping
        if stopping:
            # Not even set() again: a signal that arrives inside it would wait for the lock of the frame below forever.
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stopping = True
        event.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
