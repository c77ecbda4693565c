"""What defines an MD run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dpa1.config.base import Section


class MDSettings(Section):
    """A restart must agree with all of these but the two intervals."""

    temperature: float = Field(gt=0)
    """K; of the initial velocities, and of the thermostat."""
    pressure: float | None = None
    """GPa; makes the run NPT."""
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    """nve, nvt (Bussi's stochastic velocity rescaling) or npt (Martyna–Tobias–Klein, isotropic cell).

    When not given: npt with a pressure, else nvt.
    """
    timestep: float = Field(1.0, gt=0, le=20)
    """fs."""
    thermostat_time: float = Field(100.0, gt=0)
    """fs."""
    barostat_time: float = Field(1000.0, gt=0)
    """fs."""
    seed: int = Field(0, ge=0)
    """Of the velocities and the thermostat."""
    keep_velocities: bool = False
    """Start from the structure's own velocities."""
    every: int = Field(10, ge=1)
    """Steps between rows of the log and frames of the trajectory."""
    restart_every: int = Field(100, ge=1)
    """Steps between restart files (rounded up to a multiple of ``every``)."""

    @model_validator(mode="before")
    @classmethod
    def _infer_ensemble(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ensemble") is None:
            return {**values, "ensemble": "nvt" if values.get("pressure") is None else "npt"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> MDSettings:
        if self.ensemble == "npt" and self.pressure is None:
            raise ValueError("ensemble npt needs a pressure in GPa (--pressure)")
        if self.ensemble != "npt" and self.pressure is not None:
            raise ValueError(f"ensemble {self.ensemble} holds the cell fixed; drop the pressure, or use ensemble npt")
        return self
