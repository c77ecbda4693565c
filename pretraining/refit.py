"""Refit the energy bias of a level of theory whose first fit was led astray by energies the model cannot follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from sources import SOURCES

from dpa1.analysis.evaluate import evaluate
from dpa1.data.read import read
from dpa1.frames import Frame
from dpa1.model.potential import Potential
from dpa1.training.residual_bias import fit_shift


@torch.no_grad()
def refit_bias(potential: Potential, data: Path) -> None:
    """Shift the energy bias of every level that has a source with ``misfit`` energies, by what the others leave."""
    for level in sorted({source.level for source in SOURCES if source.misfit}):
        sources = [source.name for source in SOURCES if source.level == level and not source.misfit]
        counts, residuals = _residuals(potential, [data / "train" / f"{name}.xyz.gz" for name in sources], level)
        place = potential.levels.index(level)
        found = fit_shift(counts, residuals, potential.elements, {})
        potential.energy_bias[place] += torch.from_numpy(found.shift).to(potential.energy_bias)


def _residuals(potential: Potential, files: list[Path], level: str) -> tuple[np.ndarray, np.ndarray]:
    """Atoms per element (F × E) and label − prediction (F, eV) of all frames."""
    columns = {symbol: k for k, symbol in enumerate(potential.elements)}
    counts, residuals = [], []

    def observe(frames: list[Frame], prediction: dict[str, torch.Tensor], _: Any) -> None:
        for frame, energy in zip(frames, prediction["energy"].reshape(-1).tolist(), strict=True):
            row = np.zeros(len(columns))
            for number in frame.numbers:
                row[columns[chemical_symbols[int(number)]]] += 1
            counts.append(row)
            residuals.append(float(frame.energy) - energy)  # type: ignore[arg-type]

    for file in files:
        evaluate(potential, read(file), level=level, observe=observe)  # type: ignore[arg-type]
    return np.array(counts), np.array(residuals)
