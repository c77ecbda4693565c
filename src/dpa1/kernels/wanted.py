"""Which derivatives the caller of ``backward`` wants: the hand-derived operations leave out the others.

Autograd tells an operation only which inputs could have a gradient. A force needs none of the weights', the gradient of
a force loss none of the positions'; computing them all the same would double the matrix products of a training step.

What is wanted holds for one thread. Autograd differentiates what lies on a GPU in threads of its own, which would not know:
inside, it works in the caller's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dpa1.kernels.nodes import Grid


class _State(threading.local):
    geometry = True
    parameters = True
    grid: Grid | None = None


_state = _State()


def geometry_wanted() -> bool:
    """False inside ``parameters_only``."""
    return _state.geometry


def parameters_wanted() -> bool:
    """False inside ``geometry_only``."""
    return _state.parameters


@contextmanager
def geometry_only() -> Iterator[None]:
    """Inside, derivatives are taken with respect to positions (or what depends on them), never to weights."""
    before, _state.parameters = _state.parameters, False
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _state.parameters = before


@contextmanager
def parameters_only() -> Iterator[None]:
    """Inside, derivatives are taken with respect to weights, never to positions."""
    before, _state.geometry = _state.geometry, False
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _state.geometry = before


def step_grid() -> Grid | None:
    """What ``training_step`` was given; None outside."""
    return _state.grid


@contextmanager
def training_step(grid: Grid | None) -> Iterator[None]:
    """What is evaluated inside serves energies, forces and the gradient of one loss of them, no further derivative.

    grid: splines that may stand for the embedding net on all pairs of the step, or None.
    """
    before, _state.grid = _state.grid, grid
    try:
        yield
    finally:
        _state.grid = before


@contextmanager
def everything() -> Iterator[None]:
    """Inside, all derivatives are wanted and no training step is under way, whatever is said outside."""
    before = _state.geometry, _state.parameters, _state.grid
    _state.geometry, _state.parameters, _state.grid = True, True, None
    try:
        yield
    finally:
        _state.geometry, _state.parameters, _state.grid = before
