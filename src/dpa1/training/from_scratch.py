"""One training from new weights, or from those of a model of the same architecture; ``finetune`` is the other kind of run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpa1.config.run import RunConfig
from dpa1.data.loader import Loader
from dpa1.model.potential import Potential
from dpa1.training import bias
from dpa1.training.distributed import World
from dpa1.training.prepare import build, continued, open_checked, sample


class FromScratch:
    """It has the members of ``Finetune``; everything is checked when it is made.

    Parameters
    ----------
    initial: a model to start from, unless ``start``, a checkpoint that will fill the model, is given.

    Attributes
    ----------
    data: the data of the run.  lines: sentences on what was done.  change: nothing, as there is no base.
    """

    change = None

    def __init__(self, config: RunConfig, initial: Potential | None, start: Path | None) -> None:
        self.config, self.start, self.initial = config, start, None if start else initial
        self.data = open_checked(config)
        self.begun = None if self.initial is None else continued(self.initial, config.model, self.data)
        self._isolated = bias.pinned_energies(self.data.train, config, self.data.levels)
        self.lines: list[str] = []

    def model(self) -> Potential:
        """Empty for a checkpoint to fill, begun from another one, or measured from the data."""
        config, data = self.config, self.data
        if self.start is not None:
            potential = Potential(config.model, data.levels)
        elif self.begun is not None and self.initial is not None:
            potential, known = self.begun, self.initial.levels
            self.lines += [
                f"new level of theory {level}: starts from {known[0]}" for level in data.levels if level not in known
            ]
        else:
            chosen = sample(data.train, config.training.statistics_frames, config.seed)
            potential, most = build(config.model, data, chosen, config.seed)
            if config.model.sel is not None and most > config.model.sel:
                self.lines.append(
                    f"an atom has {most} neighbors, more than sel {config.model.sel}: the farthest are not seen"
                )
            mean = potential.config.mean_neighbors or potential.config.sel
            self.lines += [
                f"neighbors within {potential.cutoff:g} Å: at most {most}; contraction divided by {mean:g}",
                bias.initialise(potential, data.train, config, self._isolated),
            ]
        parameters = sum(p.numel() for p in potential.parameters())
        self.lines.append(
            f"model: {parameters:,} parameters, {potential.config.convention} convention, {potential.config.precision}"
        )
        return potential

    def isolated(self) -> list[dict[str, float]]:
        """Per level the isolated atoms to hold exact."""
        return self._isolated

    def begin(self, potential: Potential, train: Loader, pins: bias.Pins | None, world: World,
              valid: tuple[Loader, list[np.ndarray]] | None) -> str:  # fmt: skip
        """Before the first step: take out the constant that the untrained network adds, which energies would learn slowly."""
        if self.initial is not None:
            bias.set_given(potential, self.config)
            new = [level for level in potential.levels if level not in self.initial.levels]
            bias.fit_levels(potential, self.data.train, self.config, train, pins, world, new)
        if self.start is None and self.config.training.refit_bias:
            atoms = max(5000, 400 * len(self.data.elements))
            bias.refit(potential, self.data.train, self.config, train, pins, world, atoms=atoms)
        return ""

    def refit(self, potential: Potential, train: Loader, pins: bias.Pins | None, world: World) -> str:
        """Refit the energy bias to what the model leaves of the training energies. Returns a line."""
        return bias.refit(potential, self.data.train, self.config, train, pins, world)

    def end(self, potential: Potential, errors: dict[str, dict[str, Any]], world: World) -> str:
        """After the last step: nothing to compare with."""
        return ""
