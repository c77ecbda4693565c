"""The energy bias of a fine-tuned model: refitted per element to what the base leaves of the new energies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpa1.data.composition import CompositionFit, fit_composition
from dpa1.errors import counted

NOISE = np.logspace(-6, 2, 81)  # eV/atom; values of σ and τ of which the most probable pair is taken
SPREAD = np.logspace(-4, 6, 101)  # eV
USUAL_NOISE, FACTOR = 0.1, 3.0  # eV/atom: what a base misses, within this factor; decides where the frames are few
SUSPICIOUS = 10.0  # eV; a shift beyond it that rests on a single frame is pointed out


@dataclass(frozen=True)
class BiasShift:
    """What to add to the energy bias.

    Attributes
    ----------
    elements: (E,) symbols.  shift: (E,) eV per atom.  fit: ranks, ties and counts of the frames.
    noise, spread: eV/atom and eV, σ and τ of the fit, which holds the shifts together with the ridge σ²/τ².
    rms: eV/atom, of what the shift leaves.
    """

    elements: tuple[str, ...]
    shift: np.ndarray
    fit: CompositionFit
    noise: float
    spread: float
    rms: float

    def table(self, before: np.ndarray, after: np.ndarray, new: Sequence[str] = ()) -> str:
        """One line per element that the frames hold, then rank, ties and what they mean.

        before, after: (E,) eV, the energy bias.  new: elements the base did not know.
        """
        lines = [f"{'element':<8}{'frames':>8}{'before (eV)':>16}{'after (eV)':>16}  determined"]
        for (symbol, _, frames, _, remark), old, now in zip(self.fit.rows(), before, after, strict=True):
            if frames or symbol in self.fit.fixed:
                start = "–" if symbol in new else f"{old:.4f}"
                lines.append(f"{symbol:<8}{frames:>8}{start:>16}{now:>16.4f}  {remark or 'yes'}")
        free = len(self.elements) - len(self.fit.absent) - len(self.fit.fixed)
        lines.append(
            f"rank {self.fit.rank} of {free}, ridge {(self.noise / self.spread) ** 2:.1e} (noise {1e3 * self.noise:.3g} "
            f"meV/atom, shifts {self.spread:.2g} eV around their mean), residual {1e3 * self.rms:.4g} meV/atom over "
            f"{counted(self.fit.frames, 'frame')}"
        )
        if self.fit.frames < free:
            lines.append(
                f"fewer frames ({self.fit.frames}) than elements ({free}): the energies cannot tell their biases apart; "
                "what is left open follows the mean shift"
            )
        if self.fit.tied:
            lines.append(
                f"not determined separately: {self.fit.groups()}: energies between frames of other compositions than "
                "these rest on the base's values and the mean shift; frames of other compositions, or isolated atoms, would tell"
            )
        if self._suspicious():
            lines.append(
                f"check the energy of the only frame with {', '.join(self._suspicious())}: the shift of that element is "
                f"beyond {SUSPICIOUS:g} eV and takes in whatever is wrong there"
            )
        return "\n".join(lines)

    def _suspicious(self) -> list[str]:
        """Elements with a large shift that rests on one frame of several."""
        alone = (self.fit.occurrences == 1) & (np.abs(self.shift) > SUSPICIOUS) & (self.fit.frames > 1)
        return [symbol for symbol, one in zip(self.elements, alone, strict=True) if one]


def fit_shift(
    counts: np.ndarray,
    residuals: np.ndarray,
    elements: Sequence[str],
    fixed: Mapping[str, float],
) -> BiasShift:
    """Bayesian linear regression of residuals per atom on composition: shifts that scatter around a common one.

    r_f/n_f = Σ_e x_fe s_e + N(0, σ²) with fractions x and s_e = m + N(0, τ²), σ and τ by ``_most_probable_scales``; the
    best s minimises Σ_f (r_f/n_f − Σ_e x_fe s_e)² + (σ/τ)² Σ_e (s_e − m)². The mean m is free: a constant per atom,
    however large, is met whole. What the frames leave open follows it; elements without frames stay as they are.

    Parameters
    ----------
    counts: (F, E) atoms of each element.  residuals: (F,) eV, label − prediction.
    fixed: element → shift that is given.
    """
    fit = fit_composition((counts, residuals), elements, fixed=fixed)
    share = counts / counts.sum(1, keepdims=True)
    target = residuals / counts.sum(1)
    held = np.array([symbol in fixed for symbol in elements])
    shift = np.array([fixed.get(symbol, 0.0) for symbol in elements])
    free = (counts.sum(0) > 0) & ~held
    rest = target - share[:, held] @ shift[held]
    shift[free], noise, spread = _regress(share[:, free], rest)
    rms = float(np.sqrt(((target - share @ shift) ** 2).mean()))
    return BiasShift(tuple(elements), shift, fit, noise, spread, rms)


def _regress(share: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Shifts (E,) in eV, σ in eV/atom and τ in eV for fractions (F, E) and energies per atom (F,)."""
    total = share.sum(1)  # of a frame's atoms; what the mean shift multiplies
    mean = total / max(total @ total, 1e-300)
    centred, rest = share - np.outer(total, mean @ share), target - total * (mean @ target)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    kept = s > 1e-10 * np.sqrt(len(share))
    u, s, vt = u[:, kept], s[kept], vt[kept]
    along = u.T @ rest
    left = float(((rest - u @ along) ** 2).sum())
    noise, spread = _most_probable_scales(s, along, left, len(share) - 1)
    around = vt.T @ (s * along / (s**2 + (noise / spread) ** 2))
    return around + mean @ (target - share @ around), noise, spread


def _most_probable_scales(s: np.ndarray, along: np.ndarray, left: float, frames: int) -> tuple[float, float]:
    """σ and τ of largest evidence (MacKay, Neural Comput. 4, 415 (1992)), with a log-normal prior of σ.

    The mean shift is integrated out. Of the components of the data along the left singular vectors each is
    N(0, τ² s_k² + σ²), the others are N(0, σ²); that is defined however few the frames are, other than a noise from
    their residual.

    Parameters
    ----------
    s: (K,) singular values of the fractions.  along: (K,) eV/atom, the data along their vectors.
    left: (eV/atom)², sum of squares of the rest.  frames: number of independent data, K and the rest.
    """
    variance = (SPREAD[:, None, None] * s) ** 2 + NOISE[None, :, None] ** 2
    cost = (np.log(variance) + along**2 / variance).sum(-1)  # −2 ln evidence, (τ, σ)
    cost += 2 * (frames - len(s)) * np.log(NOISE) + left / NOISE**2
    cost += (np.log(NOISE / USUAL_NOISE) / np.log(FACTOR)) ** 2
    i, j = np.unravel_index(np.argmin(cost), cost.shape)
    return float(NOISE[j]), float(SPREAD[i])
