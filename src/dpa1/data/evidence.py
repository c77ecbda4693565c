"""What labels say about each other: energy outliers, the sign and unit of the virial, duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpa1.frames import Frame


def outliers(residuals: np.ndarray) -> np.ndarray:
    """Numbers of the frames farther than ten robust deviations (and 0.05 eV/atom) from the median, worst first."""
    known = np.flatnonzero(np.isfinite(residuals))
    if len(known) < 5:
        return known[:0]
    away = np.abs(residuals[known] - np.median(residuals[known]))
    limit = max(10.0 * 1.4826 * float(np.median(away)), 0.05)
    worst = known[away > limit]
    return worst[np.argsort(-np.abs(residuals[worst] - np.median(residuals[known])), kind="stable")]


def fingerprint(frame: Frame) -> bytes:
    """Equal for frames of the same atoms at the same places in the same cell (to 1e-5 Å), in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (frame.positions, frame.cell):
        digest.update((np.round(array, 5) + 0.0).tobytes())
    digest.update(frame.numbers.tobytes() + frame.pbc.tobytes())
    return digest.digest()


@dataclass
class Duplicates:
    """Frames seen before."""

    first: dict[bytes, tuple[int, float | None]] = field(default_factory=dict)
    pairs: list[tuple[int, int, bool]] = field(default_factory=list)

    def add(self, i: int, frame: Frame) -> None:
        """Note frame number i; a pair is (first, again, whether the energies agree to 1e-4 eV/atom)."""
        key = fingerprint(frame)
        seen = self.first.setdefault(key, (i, frame.energy))
        if seen[0] != i:
            a, b = seen[1], frame.energy
            same = a is None or b is None or abs(a - b) <= 1e-4 * len(frame)
            self.pairs.append((seen[0], i, same))


def judge_virial(frames: Sequence[Frame]) -> dict[str, Any]:
    """Is the virial −∂E/∂ε in eV? Judged by the frames alone, where they allow it.

    Two frames with the same atoms at nearly the same fractional places in slightly different cells give a finite
    difference: ΔE ≈ −W:ε − F·δ. Where there are no such pairs, or they disagree, pressure must fall as the volume of one composition grows.

    Returns
    -------
    verdict (``right``, ``wrong sign``, ``wrong unit``, ``unclear``, ``cannot be judged``), method, the evidence, sentence.
    """
    groups: dict[bytes, list[Frame]] = {}
    for frame in frames:
        if frame.virial is not None and frame.pbc.all():
            groups.setdefault(np.sort(frame.numbers).tobytes(), []).append(frame)
    expected, found = _strain_pairs(groups)
    # A pair counts only when both sides are clear of rounding.
    clear = np.abs(expected) > 1e-4
    expected, found = expected[clear], found[clear]
    if len(expected) >= 3:
        ratio = found / expected
        slope = float(np.median(ratio))
        agree = float(np.mean((ratio > slope / 1.5) & (ratio < slope * 1.5) if slope > 0 else ratio < 0))
        if agree > 0.5 and (0.67 < slope < 1.5 or (agree > 0.8 and len(expected) >= 5)):
            return _verdict_from_slope(slope, agree, len(expected))
    return _verdict_from_trend(groups)


def _strain_pairs(groups: dict[bytes, list[Frame]]) -> tuple[np.ndarray, np.ndarray]:
    """−W:ε at the middle, and ΔE without the work of the forces on the atoms (eV), of neighbouring frames by volume."""
    expected: list[float] = []
    found: list[float] = []
    for group in groups.values():
        labelled = sorted((f for f in group if f.energy is not None), key=lambda f: f.volume)
        fractions = [np.linalg.solve(f.cell.T, f.positions.T).T for f in labelled]
        for k in range(len(labelled) - 1):
            a, b = labelled[k], labelled[k + 1]
            if not np.array_equal(a.numbers, b.numbers):
                continue
            difference = fractions[k + 1] - fractions[k]
            difference -= np.round(difference)
            strain = np.linalg.solve(a.cell, b.cell) - np.eye(3)
            if np.abs(strain).max() > 0.06 or np.abs(strain).max() < 1e-4:
                continue
            if np.abs(difference).max() > 2e-3:
                continue
            assert a.virial is not None
            assert b.virial is not None
            middle = 0.5 * (a.virial + b.virial)
            # Symmetrised about the middle cell: ε of a → b halved on both sides.
            symmetric = 0.5 * (strain + strain.T) @ np.linalg.inv(np.eye(3) + 0.25 * (strain + strain.T))
            expected.append(-float((middle * symmetric).sum()))
            work = 0.0
            if a.forces is not None and b.forces is not None:
                work = 0.25 * float(((a.forces + b.forces) * (difference @ (a.cell + b.cell))).sum())
            found.append(float(b.energy or 0.0) - float(a.energy or 0.0) + work)
    return np.array(expected), np.array(found)


def _verdict_from_slope(slope: float, agree: float, pairs: int) -> dict[str, Any]:
    evidence = {"method": "finite strain", "pairs": pairs, "slope": slope, "agreement": agree}
    said = f"ΔE = {slope:.3g} × (−W:ε) over {pairs} pairs of strained frames"
    if 0.67 < slope < 1.5:
        return {**evidence, "verdict": "right", "sentence": f"{said}: sign and unit are right"}
    if slope < 0:
        return {**evidence, "verdict": "wrong sign", "sentence": f"{said}: the sign is wrong{_unit(-slope)}"}
    return {**evidence, "verdict": "wrong unit", "sentence": f"{said}: the size is wrong{_unit(slope)}"}


def _unit(slope: float) -> str:
    for factor, unit in ((1 / 160.2177, "GPa"), (1 / 1602.177, "kbar")):
        if 0.8 * factor < slope < 1.25 * factor:
            return f" (the stress may be in {unit})"
    return ""


def _verdict_from_trend(groups: dict[bytes, list[Frame]]) -> dict[str, Any]:
    weight = total = 0.0
    for group in groups.values():
        volume = np.array([f.volume for f in group])
        if len(group) < 5 or volume.std() < 0.01 * volume.mean():
            continue
        pressure = np.array([np.trace(f.virial) / 3.0 / f.volume for f in group if f.virial is not None])
        if pressure.std() == 0.0:
            continue
        weight -= len(group) * float(np.corrcoef(volume, pressure)[0, 1])
        total += len(group)
    if total == 0.0:
        return {"verdict": "cannot be judged", "method": "none",
                "sentence": "cannot be judged: no composition occurs at different volumes"}  # fmt: skip
    trend = weight / total
    evidence = {"method": "pressure trend", "frames": int(total), "correlation": trend}
    said = f"pressure against compression of one composition: correlation {trend:.2f} over {int(total)} frames"
    if trend > 0.3:
        return {**evidence, "verdict": "right", "sentence": f"{said}: the sign is right (the unit is not tested)"}
    if trend < -0.5:
        return {**evidence, "verdict": "wrong sign", "sentence": f"{said}: the sign looks wrong"}
    return {**evidence, "verdict": "unclear", "sentence": f"{said}: unclear"}
