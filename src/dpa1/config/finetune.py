"""The finetune section: which model to start from, at which level of theory, and what of it may change."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpa1.config.base import Section

Method = Literal["full", "heads", "freeze", "lora"]
RANK = 8
OUTPUT = "finetuned"  # the run folder where none is named


class FinetuneConfig(Section):
    """Start from a trained model instead of random weights; architecture, cutoff, elements and normalisation are its own."""

    base: str | None = None
    """Model to start from: a ``.dpa1`` or DeePMD-kit file, or the name of a shipped model. Null trains from scratch."""
    digest: str | None = None
    """Of the base's content; filled in by a run, which then goes on from no other base of that name."""
    method: Method | None = None
    """What learns: ``full``, ``freeze``, ``heads`` or ``lora`` (docs/finetune.md); by the number of frames when not given."""
    level: str | None = None
    """Level of theory of the base to start from; a base that holds several needs it."""
    new_level: str | None = Field(None, min_length=1)
    """What the level of the new data is called; the base's name for it, or ``finetuned`` beside the base's when it has replay."""
    rank: Annotated[int, Field(gt=0)] = RANK
    """``lora``: rank of the updates."""
    replay: float = Field(0.0, ge=0, lt=1)
    """Share of the frames drawn that come from the replay set inside the base, so that it is not forgotten; 0: none."""

    @model_validator(mode="after")
    def _needs_base(self) -> FinetuneConfig:
        given = [key for key in ("digest", "method", "level", "new_level") if getattr(self, key) is not None]
        if self.base is None and (given or self.replay):
            raise ValueError(f"{(given or ['replay'])[0]} needs base, the model to start from")
        if self.rank != RANK and self.method not in (None, "lora"):
            raise ValueError(f"rank belongs to method: lora, not to {self.method}")
        return self
