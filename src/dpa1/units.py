"""The units in which errors are shown to people; files keep eV and Å."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EV_PER_A3 = 160.21766208  # GPa
# quantity → (factor from eV and Å, unit)
SHOWN = {
    "energy": (1e3, "meV/atom"),
    "force": (1e3, "meV/Å"),
    "virial": (1e3, "meV/atom"),
    "stress": (EV_PER_A3, "GPa"),
}
# Those a training fits; stress is the virial in other words.
TRAINED = {quantity: SHOWN[quantity] for quantity in ("energy", "force", "virial")}


def rmse_in_words(errors: Mapping[str, Any]) -> str:
    """``energy 1.2 meV/atom, force 31 meV/Å``: the ``…_rmse`` that were measured; those missing or NaN are left out."""
    found = {quantity: errors.get(f"{quantity}_rmse") for quantity in TRAINED}
    return ", ".join(
        f"{quantity} {SHOWN[quantity][0] * value:.4g} {SHOWN[quantity][1]}"
        for quantity, value in found.items()
        if value is not None and value == value
    )
