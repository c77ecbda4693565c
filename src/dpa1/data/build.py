"""From whatever a reader found in one frame to a Frame: names, signs and units in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpa1.data.labels import PER_ATOM, WEAK, choose, normalise, to_numbers
from dpa1.data.report import SourceReport
from dpa1.errors import UserError
from dpa1.frames import Frame, make_frame, voigt_to_matrix

Explicit = tuple[tuple[str, str], ...]


def build_frame(
    numbers: Any,
    positions: Any,
    cell: Any,
    pbc: Any,
    per_frame: Mapping[str, Any],
    per_atom: Mapping[str, Any],
    explicit: Explicit,
    report: SourceReport,
    index: int,
) -> Frame:
    """Make a Frame from geometry and named values, and count in ``report`` what was taken.

    ``per_frame``: values by key (numbers or text); ``per_atom``: arrays whose first axis is atoms. Stress is σ in
    eV/Å³ with ASE's sign and becomes W = −σV; virial is W in eV.

    Raises
    ------
    UserError
        wrong shapes, NaN, zero volume …, naming file, frame and quantity.
    """
    name = f"{report.source}, frame {index}"
    report.frames += 1
    report.keys.update(per_frame, per_atom)
    labels: dict[str, Any] = {}
    n = len(numbers)
    for quantity, keys in choose(tuple(per_frame), tuple(per_atom), explicit).items():
        key = keys[0]
        value = per_frame[key] if key in per_frame else per_atom[key]
        if quantity == "level":
            labels["level"] = str(value)
        else:
            array = to_numbers(value, key, name)
            fits = array.size == (3 * n if quantity == "forces" else 1)
            if normalise(key) in WEAK and not fits and (quantity, key) not in explicit:
                continue
            labels[quantity] = array if quantity in PER_ATOM or array.ndim else float(array)
        report.take(quantity, keys)
    _take_virial(labels, cell, pbc, report, name)
    _check_weight(labels, name)
    return make_frame(numbers, positions, cell, pbc, source=report.source, index=index, **labels)


def _take_virial(labels: dict[str, Any], cell: Any, pbc: Any, report: SourceReport, name: str) -> None:
    """Turn stress into virial, compare the two when both are there, and leave out what has no meaning."""
    stress, virial = labels.pop("stress", None), labels.pop("virial", None)
    volume = 0.0 if cell is None or np.size(cell) != 9 else float(abs(np.linalg.det(np.reshape(cell, (3, 3)))))
    from_stress = None
    if stress is not None:
        if volume > 1e-9:
            from_stress = -_matrix(stress, "stress", name) * volume
        else:
            report.note("stress of a frame without a volume is not used", name)
            _untake(report, "stress")
    if virial is not None:
        virial = _matrix(virial, "virial", name)
        if not np.any(pbc) and not np.any(virial):
            report.note("virial of a non-periodic frame is all zero and not used", name)
            _untake(report, "virial")
            return
        if from_stress is not None:
            _untake(report, "stress")
            _compare(virial, from_stress, report, name)
        labels["virial"] = virial
    elif from_stress is not None:
        labels["virial"] = from_stress


def _untake(report: SourceReport, quantity: str) -> None:
    key = next(reversed(report.taken[quantity]))
    report.taken[quantity][key] -= 1
    if not report.taken[quantity][key]:
        del report.taken[quantity][key]
    if not report.taken[quantity]:
        del report.taken[quantity]
    report.unused.setdefault(quantity, set()).add(key)


def _compare(virial: np.ndarray, from_stress: np.ndarray, report: SourceReport, name: str) -> None:
    scale = max(np.abs(virial).max(), np.abs(from_stress).max())
    if not np.isfinite(scale) or np.abs(virial - from_stress).max() <= 1e-3 * scale + 1e-3:
        return
    factor = float(np.vdot(from_stress, virial) / max(np.vdot(from_stress, from_stress), 1e-300))
    hint = ""
    for value, cause in ((-1.0, "stress has the opposite sign"), (1 / 160.2177, "stress is in GPa")):
        if abs(factor - value) < 0.02 * abs(value):
            hint = f": {cause}"
        elif abs(factor + value) < 0.02 * abs(value) and value != -1.0:
            hint = f": {cause} and has the opposite sign"
    if abs(abs(factor) - 1 / 1602.177) < 0.02 / 1602.177:
        hint = ": stress is in kbar" + (" and has the opposite sign" if factor < 0 else "")
    report.note(f"virial and stress disagree; the virial is used{hint}", name)


def _matrix(value: Any, key: str, name: str) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((6,), (9,), (3, 3)):
        raise UserError(
            f"{name}: {key} has shape {array.shape}, expected 3×3, 9 or 6 (xx yy zz yz xz xy) numbers; "
            "repair or remove the frame"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {key} is NaN or infinite; repair or remove the frame")
    return voigt_to_matrix(array)


def _check_weight(labels: dict[str, Any], name: str) -> None:
    weight = labels.get("weight")
    if weight is not None and not (np.ndim(weight) == 0 and np.isfinite(weight) and weight >= 0):
        raise UserError(f"{name}: weight is {weight}, expected one number ≥ 0; repair or remove the frame")
