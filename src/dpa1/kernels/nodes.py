"""The embedding net at nodes: quintic splines that stand for it in a training step with many pairs of few kinds.

A pair's features are a function G of one number s for each of a few kinds of pairs (two elements each), so the net is
evaluated at n nodes per kind, and a spline with coefficients T passes through the values:

    G(s) = Σ_m B_m(u) T[i + m],    s = low + h (i + u),  0 ≤ u < 1

The nodes are as dense as it takes: spline and net are compared in every interval of every kind, each time, as a steep unit of
the net shows only near its step. Where the spline is not as exact as ``TOLERANCE`` says, or the nodes are not far fewer than
the pairs, the net itself is evaluated for every pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dpa1.kernels.embedding_net import Net, Parts, evaluate
from dpa1.kernels.table import DEGREE, coefficients, spline_sums, spline_weights

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}  # of G and of G', relative to the largest value
FIRST = {torch.float32: 48, torch.float64: 256}  # intervals tried first
MARGIN = {torch.float32: 12, torch.float64: 20}  # nodes beyond each end, where the spline's end conditions die away
PLACE = 0.25  # of the compared point in each interval: near the largest error of G', half the largest of G
MOST = 1000  # nodes of one kind: what needs more is no smooth function, and the splines' matrix is dense
SAVING = 2  # pairs per node below which the nodes save nothing


@dataclass(frozen=True)
class Nodes:
    """Splines of all kinds of pairs.

    Attributes
    ----------
    step: of the intervals.
    count: nodes, and rows of the table, of one kind.
    row: (P,) first of the six rows of each pair.  place: (P,) u, without a gradient.
    table: (rows, C) coefficients in float64, differentiable by the weights.
    """

    step: float
    count: int
    row: Tensor
    place: Tensor
    table: Tensor

    def slopes(self) -> Tensor:
        """(rows, C) coefficients of the quartic spline G', whose weights are ``slope_weights``."""
        table = self.table.view(-1, self.count, self.table.shape[1])
        return torch.cat([table.diff(dim=1) / self.step, torch.zeros_like(table[:, :1])], 1).flatten(0, 1)


def slope_weights(place: Tensor) -> Tensor:
    """(P, 6) of the rows of ``slopes``: all positive, so that no digits are lost as they are in differences of T."""
    return spline_weights(1, place).cumsum(-1).neg_()


@dataclass(frozen=True)
class Grid:
    """The splines of all kinds of pairs, before any pair has its place.

    Attributes
    ----------
    low, step, intervals: of the nodes, margins apart.  count: nodes, and rows of the table, of one kind.
    first: for each row of ``Parts.types`` the first row of its kind in the table.
    table: (rows, C) coefficients in float64, differentiable by the weights.
    """

    low: float
    step: float
    intervals: int
    count: int
    first: Tensor
    table: Tensor

    def place(self, net: Parts) -> Nodes:
        """The places of a net's pairs."""
        # In float32 a place among hundreds of intervals would be rounded more than s is.
        place = (net.s.detach().double() - self.low).div_(self.step)
        interval = place.floor().clamp_(0, self.intervals - 1)
        row = interval.to(torch.int64).add_(MARGIN[net.s.dtype] - 2)
        if net.pair is not None and len(self.table) > self.count:
            row += self.first[net.pair]
        return Nodes(self.step, self.count, row, place.sub_(interval).to(net.s.dtype), self.table)


def place_nodes(net: Parts, saving: int = SAVING) -> Nodes | None:
    """Nodes for the pairs of a net; None where fewer than ``saving`` pairs come on a node, or no spline is exact enough."""
    grid = own_grid(net, saving)
    return None if grid is None else grid.place(net)


def own_grid(net: Parts, saving: int = SAVING) -> Grid | None:
    """Splines that serve the pairs of a net alone; None as ``place_nodes``."""
    if not len(net.s):
        return None
    low, high = (float(x) for x in torch.aminmax(net.s.detach()))
    return make_grid(net, low, high, len(net.s), saving)


def make_grid(net: Parts, low: float, high: float, pairs: int, saving: int = SAVING) -> Grid | None:
    """Splines between two distances for the kinds of pairs of a net, to serve so many pairs; None as ``place_nodes``."""
    dtype = net.s.dtype
    if pairs < saving * FIRST[dtype]:
        return None
    kinds = _kinds(net)
    intervals, margin, before = FIRST[dtype], MARGIN[dtype], math.inf
    while True:
        count = intervals + 1 + 2 * margin
        step = max(high - low, 1e-3) / intervals
        lost = 64 * torch.finfo(dtype).eps * max(abs(low), abs(high)) > step
        if lost or count > MOST or saving * count * len(kinds) > pairs:
            return None
        table = _table(net, kinds, low - margin * step, step, count)
        error = _error(net, kinds, table, low, step, intervals)
        if error <= TOLERANCE[dtype]:
            break
        # The error of G' falls with the fifth power of the step.
        wanted = 1.15 * intervals * (error / TOLERANCE[dtype]) ** (1.0 / DEGREE)
        if error > 0.5 * before or not wanted < pairs:  # what is left is rounding, or no smooth function
            return None
        before = error
        intervals = 16 * math.ceil(wanted / 16)
    first = torch.zeros(len(net.types), dtype=torch.int64)
    first[kinds] = count * torch.arange(len(kinds))
    return Grid(low, step, intervals, count, first, table)


def _kinds(net: Parts) -> Tensor:
    """The rows of ``types`` that pairs have."""
    if net.pair is None:
        return torch.zeros(1, dtype=torch.int64)
    return (torch.bincount(net.pair, minlength=len(net.types)) > 0).nonzero().squeeze(1)


def _table(net: Parts, kinds: Tensor, first: float, step: float, count: int) -> Tensor:
    """(kinds · nodes, C) spline coefficients in float64: rounded values would not do for slopes."""
    s = first + step * torch.arange(count, dtype=torch.float64)
    s, index = s.repeat(len(kinds)), kinds.repeat_interleave(count)
    values, _ = Net.apply(net.repeats, False, index, s, net.types.double(), *(w.double() for w in net.weights))
    table: Tensor = _inverse(count) @ values.view(len(kinds), count, -1)
    return table.flatten(0, 1)


@lru_cache(maxsize=64)
def _inverse(count: int) -> Tensor:
    """(n, n): coefficients of the spline through n values."""
    with torch.inference_mode(False):
        return torch.from_numpy(coefficients(np.eye(count)))


@torch.no_grad()
def _error(net: Parts, kinds: Tensor, table: Tensor, low: float, step: float, intervals: int) -> float:
    """Largest difference of G and of G' between spline and net within the intervals, relative to the largest value."""
    margin, count = MARGIN[net.s.dtype], len(table) // len(kinds)
    interval = torch.arange(intervals)
    s = (low + step * (interval.double() + PLACE)).repeat(len(kinds))
    types, weights = net.types[kinds.repeat_interleave(intervals)].double(), [w.double() for w in net.weights]
    exact = evaluate(net.repeats, True, s, types, weights)[-1]
    row = (interval + margin - 2).repeat(len(kinds)) + torch.arange(len(kinds)).repeat_interleave(intervals) * count
    place = torch.full_like(s, PLACE)
    near = torch.stack(spline_sums(row, table, spline_weights(0, place), spline_weights(1, place) / step))
    difference = (near - exact).abs_().amax((1, 2)) / exact.abs().amax((1, 2)).clamp(min=1e-30)
    return float(difference.nan_to_num(nan=float("inf")).max())
