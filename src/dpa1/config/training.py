"""The training and loss sections of a run. The defaults train a small data set well; see docs/training.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dpa1.config.base import Section

Positive = Annotated[int, Field(gt=0)]
Factor = Annotated[float, Field(ge=0)]
LEARNING_RATE = {"adam": 2e-3, "adamw": 2e-3, "muon": 1e-2}
BATCH_ATOMS = 256
BUDGETS = ("batch_atoms", "batch_pairs", "batch_frames")
Metric = Literal["loss", "energy_rmse", "energy_mae", "force_rmse", "force_mae", "virial_rmse", "virial_mae"]


class LossConfig(Section):
    """Weights of the loss terms as [at the start, at the end]; they follow the learning rate from one to the other."""

    energy: tuple[Factor, Factor] = (0.1, 1.0)
    """Prefactor of the energy error. One number means constant; 0 turns the term off."""
    force: tuple[Factor, Factor] = (100.0, 20.0)
    """Prefactor of the force error."""
    virial: tuple[Factor, Factor] = (0.0, 0.0)
    """Prefactor of the virial error."""
    kind: Literal["mse", "mae", "huber"] = "mse"
    """Squared, absolute, or Huber (squared near zero, absolute beyond ``huber_delta``) errors."""
    huber_delta: tuple[float, float, float] = (0.01, 0.01, 0.01)
    """Where Huber turns linear: eV/atom for energy, eV/Å for forces, eV/atom for virial. One number sets all three."""
    intensive: bool = False
    """Divide squared energy and virial errors by N² instead of N, so that large frames do not weigh more (``mse`` only)."""
    follow_warmup: bool = False
    """Let the prefactors follow the learning rate during the warm-up too (DeePMD-kit) instead of waiting at the start."""
    force_norm: bool = False
    """``mae`` and ``huber`` of the length of each atom's force error instead of its components."""

    @field_validator("energy", "force", "virial", mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("huber_delta", mode="before")
    @classmethod
    def _one_delta(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not self.terms:
            raise ValueError(
                "every prefactor is 0, so there is nothing to learn; give energy, force or virial a weight"
            )
        if min(self.huber_delta) <= 0:
            raise ValueError("huber_delta must be greater than 0")
        if self.force_norm and self.kind == "mse":
            raise ValueError("force_norm changes nothing with kind: mse; choose kind: mae or huber, or drop the key")
        if self.intensive and self.kind != "mse":
            raise ValueError("intensive belongs to kind: mse; mae and huber are per atom already, drop the key")
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that are on, of energy, force, virial."""
        return tuple(name for name in ("energy", "force", "virial") if any(getattr(self, name)))


class ScheduleConfig(Section):
    """How the learning rate changes over the run, after the warm-up."""

    kind: Literal["exponential", "cosine", "wsd", "constant"] = "cosine"
    """``wsd``: warm-up, stable, decay."""
    stop: float | None = Field(None, gt=0)
    """Learning rate at the end; ``learning_rate · stop_ratio`` when not given."""
    stop_ratio: float = Field(1e-3, gt=0, le=1)
    """End over start of the learning rate."""
    decay_steps: Positive | None = None
    """``exponential``: steps between two drops; a smooth decay when not given."""
    decay_rate: float | None = Field(None, gt=0, le=1)
    """``exponential``: factor of each drop; chosen to end at ``stop`` when not given (needs ``decay_steps``)."""
    smooth: bool = False
    """``exponential`` with ``decay_steps``: the same decay without the stairs."""
    decay_fraction: float = Field(0.1, gt=0, le=1)
    """``wsd``: fraction of the run spent decaying."""
    decay_form: Literal["inverse_linear", "cosine", "linear"] = "inverse_linear"
    """``wsd``: shape of the decay."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up; 2 % of the run, at most 1000, when not given."""
    warmup_start: float = Field(0.0, ge=0, le=1)
    """Fraction of the learning rate the warm-up starts from."""

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleConfig:
        if self.decay_rate is not None and self.decay_steps is None:
            raise ValueError("decay_rate needs decay_steps, the number of steps between two drops")
        return self


class OptimizerConfig(Section):
    """How a gradient becomes a step."""

    kind: Literal["adam", "adamw", "muon"] = "muon"
    """``muon``: orthogonalised momentum for the weight matrices, Adam for all else."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Memory of Adam's first and second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to Adam's denominator."""
    weight_decay: float | None = Field(None, ge=0)
    """0 for ``adam`` and ``muon``, 1e-3 for ``adamw`` when not given. With ``muon`` it acts on weight matrices and their
    biases; runs of more than some thousand steps need it, 0.1 for example, lest the matrices grow and saturate the networks."""


class TrainingConfig(Section):
    """How long, how fast, on what."""

    steps: Positive = 10_000
    """Optimizer steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training data; replaces ``steps`` when given."""
    batch_atoms: Positive | None = None
    """Fill each batch with frames up to this many atoms (256 when no budget is given)."""
    batch_pairs: Positive | None = None
    """Fill each batch up to about this many neighbour pairs."""
    batch_frames: Positive | None = None
    """This many frames in each batch."""
    accumulate: Positive = 1
    """Batches whose gradients are added up for one step."""
    learning_rate: float = Field(LEARNING_RATE["muon"], gt=0)
    """Largest learning rate, reached after the warm-up; 1e-2 for ``muon``, 2e-3 for ``adam`` when not given."""
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    clip_factor: float | None = Field(3.0, gt=1)
    """Shorten a gradient to this many times the recent average length; null turns it off."""
    clip_norm: float | None = Field(None, gt=0)
    """Shorten a gradient to this length."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights; validation and the final model then use the average."""
    valid_every: Positive | None = None
    """Steps between validations; a fiftieth of the run, at least 100 (or the whole run), when not given."""
    valid_metric: Metric = "loss"
    """What decides which model is the best one; ``loss`` has the prefactors of the end of the run."""
    patience: Positive | None = None
    """Stop after this many validations without a better one."""
    log_every: Positive | None = None
    """Steps between rows of metrics.csv; a two-hundredth of the run, at least 10, when not given."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints; 1000, or a tenth of a shorter run, when not given."""
    keep_checkpoints: Positive = 2
    """How many checkpoints to keep; older ones are removed."""
    energy_bias: dict[str, float | dict[str, float]] = Field(default_factory=dict)
    """eV; elements whose energy bias is given instead of fitted. Of several levels: ``{level: {element: eV}}``."""
    pin_isolated_atoms: bool = True
    """A labelled frame of one isolated atom fixes that atom's energy exactly (network included)."""
    refit_bias: bool = True
    """Refit the energy bias to the finished model's residuals, in closed form."""
    statistics_frames: Positive = 2000
    """Frames sampled for input statistics and energy bias."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``…; ``auto`` takes a GPU when there is one."""
    threads: Positive | None = None
    """CPU threads; torch decides when not given."""
    recompute: bool = False
    """Evaluate each batch twice instead of keeping its graph: the same gradient with much less memory, a third slower."""
    prefetch: bool = True
    """Build the next batch in a background thread."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_optimizer(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "learning_rate" in values:
            return values
        optimizer = values.get("optimizer")
        kind = optimizer.get("kind") if isinstance(optimizer, dict) else None
        return {**values, "learning_rate": LEARNING_RATE[kind]} if kind in ("adam", "adamw") else values

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        given = [k for k in BUDGETS if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; keep one")
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs are both given; keep one")
        return self

    @property
    def budget(self) -> tuple[Literal["atoms", "pairs", "frames"], int]:
        """What fills a batch and how much of it."""
        if self.batch_frames is not None:
            return "frames", self.batch_frames
        if self.batch_pairs is not None:
            return "pairs", self.batch_pairs
        return "atoms", self.batch_atoms or BATCH_ATOMS
