"""The frames a potential describes worst, kept while an evaluation passes by, and drawn as scenes one can turn."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from dpa1.analysis.page import Scene
from dpa1.frames import Frame

if TYPE_CHECKING:
    from torch import Tensor

MOST_ATOMS = 1000  # drawn of one frame: those nearest to the worst atom
ARROW = 1.5  # Å, length of the largest force error


@dataclass(frozen=True)
class WorstFrame:
    """A frame with its errors: energy (eV/atom) and force error of every atom (N, 3) eV/Å, None without the label."""

    frame: Frame
    energy: float | None
    forces: np.ndarray | None

    @property
    def rmse(self) -> float:
        """What frames are ordered by: the RMSE of the forces (eV/Å), or of the energy where there are no forces."""
        return float(np.sqrt((self.forces**2).mean())) if self.forces is not None else abs(self.energy or 0.0)


class Worst:
    """Give its ``observe`` to ``evaluate``: it keeps the ``count`` frames of largest error, with forces before without."""

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self._heap: list[tuple[bool, float, int, WorstFrame]] = []
        self._seen = 0

    def observe(self, frames: Sequence[Frame], prediction: dict[str, Tensor], terms: Tensor) -> None:
        """One batch, as ``evaluate`` hands it over."""
        energies, forces = (prediction[key].detach().cpu().numpy() for key in ("energy", "forces"))
        start = 0
        for k, frame in enumerate(frames):
            own, start = forces[start : start + len(frame)], start + len(frame)
            if frame.energy is None and frame.forces is None:
                continue
            item = WorstFrame(
                frame,
                None if frame.energy is None else float(energies[k] - frame.energy) / len(frame),
                None if frame.forces is None else own - frame.forces,
            )
            self._seen += 1
            heapq.heappush(self._heap, (item.forces is not None, item.rmse, -self._seen, item))
            if len(self._heap) > self.count:
                heapq.heappop(self._heap)

    def frames(self) -> list[WorstFrame]:
        """The largest error first."""
        return [entry[-1] for entry in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]


def scene(worst: WorstFrame) -> Scene:
    """The frame in its cell, force errors as violet lines."""
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    frame = worst.frame
    positions = _wrapped(frame)
    errors = np.zeros_like(positions) if worst.forces is None else worst.forces
    sizes = np.linalg.norm(errors, axis=1)
    peak = int(sizes.argmax())
    shown = np.arange(len(frame))
    if len(frame) > MOST_ATOMS:
        shown = np.sort(np.linalg.norm(positions - positions[peak], axis=1).argsort()[:MOST_ATOMS])
    colours = {
        chemical_symbols[z]: "#" + "".join(f"{round(255 * x):02x}" for x in jmol_colors[z])
        for z in np.unique(frame.numbers[shown])
    }
    points = []
    for k in shown:
        symbol = chemical_symbols[frame.numbers[k]]
        title = f"{symbol}, atom {k}" + (
            f": force error {1e3 * sizes[k]:.4g} meV/Å" if worst.forces is not None else ""
        )
        points.append(
            [
                *_plain(positions[k]),
                float(round(0.45 * covalent_radii[frame.numbers[k]], 3)),
                colours[symbol],
                "",
                title,
            ]
        )
    lines = [[*_plain(a), *_plain(b), "#9aa5af"] for a, b in _edges(frame)]
    if sizes[peak] > 0:
        ends = positions + errors * (ARROW / sizes[peak])
        lines += [[*_plain(positions[k]), *_plain(ends[k]), "#7a1fd1"] for k in shown if sizes[k] > 0.05 * sizes[peak]]
    parts = [] if worst.energy is None else [f"energy {1e3 * worst.energy:+.4g} meV/atom"]
    if worst.forces is not None:
        where = f"{chemical_symbols[frame.numbers[peak]]}, atom {peak}"
        parts.append(
            f"force RMSE {1e3 * worst.rmse:.4g} meV/Å, largest {1e3 * sizes[peak]:.4g} meV/Å on {where} (violet lines)"
        )
    if len(shown) < len(frame):
        parts.append(f"{len(shown)} of {len(frame)} atoms are drawn, those nearest to atom {peak}")
    return Scene(f"{frame.name}: {'; '.join(parts)}", points, lines, tuple(colours.items()))


def _wrapped(frame: Frame) -> np.ndarray:
    """(N, 3) positions, inside the cell along periodic directions."""
    if not frame.pbc.any() or frame.volume == 0.0:
        return frame.positions
    fractional = np.linalg.solve(frame.cell.T, frame.positions.T).T
    return frame.positions - (np.floor(fractional) * frame.pbc) @ frame.cell


def _edges(frame: Frame) -> list[tuple[np.ndarray, np.ndarray]]:
    """The twelve edges of the cell of a periodic frame."""
    if not frame.pbc.any():
        return []
    corners = [np.array(corner) for corner in product((0, 1), repeat=3)]
    return [
        (a @ frame.cell, b @ frame.cell) for a in corners for b in corners if (b >= a).all() and int((b - a).sum()) == 1
    ]


def _plain(place: np.ndarray) -> list[float]:
    return [round(float(x), 3) for x in place]
