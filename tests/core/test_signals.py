"""Signals that come in a burst, as schedulers send them."""

import signal
import threading

import pytest

from dpa1.signals import stop_signals


def test_second_signal_during_the_first_does_not_block(monkeypatch):
    plain = threading.Event.set

    def interrupted(event):
        with event._cond:
            signal.raise_signal(signal.SIGTERM)
        plain(event)

    with stop_signals() as stop:
        monkeypatch.setattr(threading.Event, "set", interrupted)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def test_second_interrupt_stops_at_once():
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
