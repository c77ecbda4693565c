"""LabelReport: what was read from where, and which key was taken for which label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dpa1.errors import UserError, did_you_mean

LISTED = 12  # sources named one by one
UNITS = {
    "energy": "eV",
    "forces": "eV/Å",
    "virial": "eV, W = −∂E/∂ε: positive wants to expand",
    "stress": "eV/Å³, ASE's sign; W = −σV",
    "atomic_energies": "eV",
    "weight": "loss weight",
    "level": "level of theory",
}


@dataclass
class SourceReport:
    """One file or system: its format, its frames and the keys its labels came from."""

    source: str
    format: str
    frames: int = 0
    taken: dict[str, Counter[str]] = field(default_factory=dict)
    unused: dict[str, set[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def take(self, quantity: str, keys: tuple[str, ...]) -> None:
        """Count that ``keys[0]`` was taken for ``quantity`` and the other keys were not."""
        self.taken.setdefault(quantity, Counter())[keys[0]] += 1
        if len(keys) > 1:
            self.unused.setdefault(quantity, set()).update(keys[1:])

    def note(self, text: str, frame: str) -> None:
        """Count something worth telling that happened in ``frame``."""
        self.notes[text] += 1
        self.first.setdefault(text, frame)

    def count(self, quantity: str) -> int:
        """Number of frames that have the label (a virial may come from a stress)."""
        quantities = ("virial", "stress") if quantity == "virial" else (quantity,)
        return sum(sum(self.taken.get(q, Counter()).values()) for q in quantities)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.format}, {self.frames} frame{'s' if self.frames != 1 else ''}"]
        for quantity, unit in UNITS.items():
            for key, n in self.taken.get(quantity, Counter()).items():
                every = "all" if n == self.frames else f"{n} of {self.frames}"
                lines.append(f"  {quantity:<8} ← '{key}' in {every} ({unit})")
            if self.unused.get(quantity):
                lines.append(f"           also there, not used: {', '.join(sorted(self.unused[quantity]))}")
        if not any(q in self.taken for q in ("energy", "forces", "virial", "stress")):
            lines.append("  no labels")
        lines += [f"  note: {text} ({n} frames, first {self.first[text]})" for text, n in self.notes.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "source": self.source,
            "format": self.format,
            "frames": self.frames,
            "taken": {quantity: dict(keys) for quantity, keys in self.taken.items()},
            "unused": {quantity: sorted(keys) for quantity, keys in self.unused.items()},
            "notes": {text: {"frames": n, "first": self.first[text]} for text, n in self.notes.items()},
        }


@dataclass
class LabelReport:
    """What a call of ``read`` or ``open_dataset`` found; ``print(report)`` shows it."""

    sources: list[SourceReport] = field(default_factory=list)

    def add(self, source: str, format: str) -> SourceReport:
        """Start the report of one file or system."""
        self.sources.append(SourceReport(source, format))
        return self.sources[-1]

    def __str__(self) -> str:
        return "\n".join(str(source) for source in self.sources)

    def shortened(self) -> str:
        """As printed, but with at most a dozen sources; the rest is summed up in one line."""
        lines = [str(source) for source in self.sources[:LISTED]]
        if len(self.sources) > LISTED:
            rest = self.sources[LISTED:]
            lines.append(f"… and {len(rest)} more with {sum(source.frames for source in rest)} frames")
        return "\n".join(lines)

    def as_dict(self) -> list[dict[str, Any]]:
        """The same, ready for JSON."""
        return [source.as_dict() for source in self.sources]

    def require(self, explicit: tuple[tuple[str, str], ...], since: int = 0) -> None:
        """Check that every explicitly requested key was found in at least one frame of the sources from ``since`` on.

        Raises
        ------
        UserError
            naming the key and the keys that do exist.
        """
        sources = self.sources[since:]
        for quantity, key in explicit:
            if not any(key in source.taken.get(quantity, ()) for source in sources):
                keys = sorted(set().union(*(source.keys for source in sources)))
                where = sources[0].source if len(sources) == 1 else f"the {len(sources)} sources given"
                raise UserError(
                    f"{where}: no frame has '{key}', which labels asks for as {quantity}"
                    + (did_you_mean(key, keys) or (f"; keys there: {', '.join(keys)}" if keys else ""))
                )
