"""Which key of a file holds which label, whatever people call it.

Names are compared without case, underscores and dashes. When several fit, the first in this order is taken:
``REF_``, then ``dft_``, ``qm_``, ``target_`` (before or after the name), then the bare name; and within each, the order
of ``STEMS``. What was taken and what was left is in the ``LabelReport``. An explicit mapping always wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from dpa1.errors import UserError, did_you_mean

PREFIXES = ("ref", "dft", "qm", "target", "")
STEMS: dict[str, tuple[str, ...]] = {
    "energy": ("energy", "totalenergy", "totenergy", "etot", "toten", "potentialenergy", "epot", "freeenergy", "e"),
    "forces": ("forces", "force", "f"),
    "virial": ("virial", "virials"),
    "stress": ("stress", "stresstensor"),
    "atomic_energies": ("atomicenergies", "atomenergies", "energies", "atomener"),
    "weight": ("configweight", "frameweight", "weight"),
    "level": ("leveloftheory", "level"),
}
PER_ATOM = ("forces", "atomic_energies")
# One letter is a guess: it counts only when its shape fits.
WEAK = ("e", "f")


def normalise(key: str) -> str:
    """``REF_Energy`` → ``refenergy``."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _ranks() -> dict[str, tuple[str, int]]:
    ranks: dict[str, tuple[str, int]] = {}
    for quantity, stems in STEMS.items():
        order = 0
        for prefix in PREFIXES:
            for stem in stems:
                for name in {prefix + stem, stem + prefix}:
                    ranks.setdefault(name, (quantity, order))
                order += 1
    return ranks


_RANKS = _ranks()


@lru_cache(maxsize=1024)
def choose(
    per_frame: tuple[str, ...], per_atom: tuple[str, ...], explicit: tuple[tuple[str, str], ...] = ()
) -> dict[str, tuple[str, ...]]:
    """For each quantity the keys that hold it, the one to take first.

    ``per_frame``, ``per_atom``: the keys of one frame. ``explicit``: (quantity, key) pairs that win over any guess.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for key in (*per_frame, *per_atom):
        quantity, rank = _RANKS.get(normalise(key), ("", 0))
        if quantity and key in (per_atom if quantity in PER_ATOM else per_frame):
            found.setdefault(quantity, []).append((rank, key))
    chosen = {quantity: tuple(dict.fromkeys(key for _, key in sorted(keys))) for quantity, keys in found.items()}
    for quantity, key in explicit:
        chosen.pop(quantity, None)
        if key in per_frame or key in per_atom:
            chosen[quantity] = (key,)
    if any(quantity == "stress" for quantity, _ in explicit) and not any(q == "virial" for q, _ in explicit):
        chosen.pop("virial", None)
    return chosen


def check_mapping(labels: Mapping[Any, str] | None) -> tuple[tuple[str, str], ...]:
    """The explicit mapping as a hashable tuple.

    Raises
    ------
    UserError
        for a quantity that does not exist.
    """
    for quantity in labels or {}:
        if quantity not in STEMS:
            raise UserError(
                f"labels: unknown quantity '{quantity}'{did_you_mean(quantity, STEMS)}; known: {', '.join(STEMS)}"
            )
    return tuple((labels or {}).items())


def to_numbers(value: Any, key: str, name: str) -> np.ndarray:
    """A label value as float64 array; nine plain numbers become a 3×3 matrix in the column order of extended XYZ.

    Raises
    ------
    UserError
        when the value is not numeric.
    """
    nested = False
    try:
        if isinstance(value, str):
            nested = value.count("[") > 1
            value = [float(word) for word in re.findall(r"[^\s,\[\]]+", value.replace("_JSON", ""))]
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        shown = re.sub(r"[\s\[\]]*b'|'", " ", str(value)).strip(" []")[:30]
        raise UserError(f"{name}: {key} = '{shown}' is not a number; repair or remove the frame") from None
    if array.shape == (9,):
        array = array.reshape(3, 3) if nested else array.reshape(3, 3).T
    return array[0] if array.shape == (1,) else array
