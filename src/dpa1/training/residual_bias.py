"""The energy bias of a fine-tuned model: refitted per element to what the base leaves of the new energies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpa1.data.composition import CompositionFit, fit_composition
from dpa1.errors import counted

LEAST_RIDGE = 1e-10  # relative to the mean diagonal: decides only what the frames leave open
MOST_RIDGE = 1e-3  # beyond it, what the frames do determine would shrink


@dataclass(frozen=True)
class BiasShift:
    """New minus old energy bias.

    Attributes
    ----------
    elements: (E,) symbols.  before, shift: (E,) eV per atom.  fit: ranks, ties and counts of the frames.
    ridge: strength that held the shift near zero, relative to the mean diagonal of the normal matrix.
    rms: eV/atom, of what the shift leaves.
    """

    elements: tuple[str, ...]
    before: np.ndarray
    shift: np.ndarray
    fit: CompositionFit
    ridge: float
    rms: float
    new: tuple[str, ...]

    def table(self) -> str:
        """One line per element that the frames hold, then rank, ties and what they mean."""
        lines = [f"{'element':<8}{'frames':>8}{'base bias (eV)':>16}{'new bias (eV)':>16}  determined"]
        for (symbol, _, frames, _, remark), old, shift in zip(self.fit.rows(), self.before, self.shift, strict=True):
            if frames or symbol in self.fit.fixed:
                start = "–" if symbol in self.new else f"{old:.4f}"
                lines.append(f"{symbol:<8}{frames:>8}{start:>16}{old + shift:>16.4f}  {remark or 'yes'}")
        free = len(self.elements) - len(self.fit.absent) - len(self.fit.fixed)
        lines.append(
            f"rank {self.fit.rank} of {free}, ridge {self.ridge:.1e}, residual {1e3 * self.rms:.4g} meV/atom over "
            f"{counted(self.fit.frames, 'frame')}"
        )
        if self.fit.frames < free:
            lines.append(
                f"fewer frames ({self.fit.frames}) than elements ({free}): the energies cannot tell their biases apart; "
                "what is left open stays as near to the base's as it can"
            )
        if self.fit.tied:
            groups = "; ".join(", ".join(group) for group in self.fit.tied)
            lines.append(
                f"not determined separately: {groups}: energies between frames of other compositions than these rest on "
                "the base's values; frames of other compositions, or isolated atoms, would determine them"
            )
        return "\n".join(lines)


def fit_shift(
    counts: np.ndarray,
    residuals: np.ndarray,
    elements: Sequence[str],
    before: np.ndarray,
    fixed: Mapping[str, float],
    new: Sequence[str] = (),
) -> BiasShift:
    """Ridge regression of residuals on composition, towards no shift.

    Minimises Σ_f ((r_f − Σ_e n_fe s_e)/n_f)² + λ Σ_e s_e². λ is the noise over the size of the shifts, both of the fit without it, and small at any rate:
    it decides what the frames hardly determine; where they say nothing the shift is zero.

    Parameters
    ----------
    counts: (F, E) atoms of each element.  residuals: (F,) eV, label − prediction.
    before: (E,) eV, the present bias.  fixed: element → shift that is given.  new: elements the base did not know.
    """
    fit = fit_composition((counts, residuals), elements, fixed=fixed)
    share = counts / counts.sum(1, keepdims=True)
    target = residuals / counts.sum(1)
    held = np.array([symbol in fixed for symbol in elements])
    shift = np.array([fixed.get(symbol, 0.0) for symbol in elements])
    free = np.flatnonzero((counts.sum(0) > 0) & ~held)
    ridge = LEAST_RIDGE
    if len(free):
        rest = target - share[:, held] @ shift[held]
        normal, right = share[:, free].T @ share[:, free], share[:, free].T @ rest
        scale = np.trace(normal) / len(free)
        shift[free] = np.linalg.solve(normal + ridge * scale * np.eye(len(free)), right)
        noise = ((rest - share[:, free] @ shift[free]) ** 2).sum() / max(1, len(rest) - fit.rank)
        ridge = float(np.clip(noise / max((shift[free] ** 2).mean(), 1e-12) / scale, LEAST_RIDGE, MOST_RIDGE))
        shift[free] = np.linalg.solve(normal + ridge * scale * np.eye(len(free)), right)
    rms = float(np.sqrt(((target - share @ shift) ** 2).mean()))
    return BiasShift(tuple(elements), before, shift, fit, ridge, rms, tuple(new))
