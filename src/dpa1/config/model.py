"""The model section: every option of DPA-1 (arXiv 2208.08236), in the words of the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from pydantic import Field, field_validator, model_validator

from dpa1.config.base import Section
from dpa1.errors import did_you_mean

Positive = Annotated[int, Field(gt=0)]
Precision = Literal["float32", "float64"]
Pair = tuple[str, str]
ACTIVATIONS = ("tanh", "relu", "relu6", "softplus", "sigmoid", "silu", "gelu", "gelu_tf", "linear", "none")

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "embedding": [16, 32, 64], "axis": 8, "attention_layers": 1, "attention_width": 64, "fitting": [96, 96, 96],
    },
    "base": {
        "embedding": [25, 50, 100], "axis": 16, "attention_layers": 2, "attention_width": 128, "fitting": [240, 240, 240],
    },
    "large": {
        "embedding": [32, 64, 128], "axis": 16, "attention_layers": 3, "attention_width": 128,
        "type_embedding": 16, "fitting": [320, 320, 320],
    },
}  # fmt: skip


class ModelConfig(Section):
    """Architecture of one potential. A named ``size`` sets the widths; any key given beside it wins."""

    size: Literal["small", "base", "large"] | None = None
    """Named widths: ``small`` (MD on a laptop), ``base`` (the published DPA-1), ``large``."""
    convention: Literal["smooth", "deepmd"] = "smooth"
    """``smooth``: no neighbour limit, continuous at the cutoff. ``deepmd``: DeePMD-kit's formulas, with its ``sel``."""
    elements: tuple[str, ...] | None = None
    """Chemical symbols the model knows, in table order; taken from the training data when not given."""
    cutoff: float = Field(6.0, gt=0)
    """Å; atoms farther apart do not see each other."""
    switch_start: float = Field(0.5, ge=0)
    """Å; where the smooth switch to zero at the cutoff begins."""
    sel: Positive | None = None
    """``deepmd`` only: neighbour slots per atom. The nearest ``sel`` are kept and it divides the contraction."""
    mean_neighbors: float | None = Field(None, gt=0)
    """``smooth`` only: divides the contraction; the mean neighbour number of the training data when not given."""
    environment_protection: float = Field(0.0, ge=0)
    """Å added to r in the denominators of the environment matrix."""
    embedding: Annotated[tuple[Positive, ...], Field(min_length=1)] = (25, 50, 100)
    """Widths of the embedding net."""
    axis: Positive = 16
    """Number of leading embedding channels that form the second factor of the contraction."""
    type_embedding: Positive = 8
    """Width of the type embedding."""
    type_input: Literal["concat", "strip"] = "concat"
    """``concat``: type embeddings enter the embedding net beside the distance. ``strip``: a separate net multiplies."""
    one_sided: bool = False
    """Only the neighbour's type (not the centre's) enters the pair features."""
    electron_configuration: bool = False
    """Build the type embedding from electron configurations instead of one-hot types."""
    type_embedding_bias: bool = False
    """A bias in the type-embedding layer."""
    append_type_embedding: bool = True
    """Append the centre's type embedding to the descriptor."""
    attention_layers: int = Field(2, ge=0)
    """Number of gated self-attention layers over each atom's neighbours."""
    attention_width: Positive = 128
    """Width of queries, keys and values."""
    gate: bool = True
    """Multiply attention weights by the cosine of the angle between the two neighbours' directions."""
    normalize: bool = True
    """Scale queries, keys and values to unit length."""
    temperature: float | None = None
    """Factor on the scores; (attention_width · scaling)^−1/2 when not given."""
    scaling: float = Field(1.0, gt=0)
    """Enters the default temperature."""
    smooth_attention: bool = True
    """``deepmd`` only: DeePMD-kit's ``smooth_type_embedding``. The ``smooth`` convention is always smooth."""
    subtract_mean: bool = False
    """Subtract the mean of the radial input per element (DeePMD-kit's ``set_davg_zero: false``)."""
    slot_statistics: bool = False
    """``deepmd`` only: the input statistics of an imported model differ by rank of the neighbour."""
    activation: str = "tanh"
    """Of the embedding net."""
    timestep_residual: bool = False
    """Learned factor on each residual step of the embedding net."""
    layer_norm_trainable: bool = True
    """Train scale and offset of the layer norms."""
    layer_norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance in the layer norms."""
    exclude_pairs: tuple[Pair, ...] = ()
    """Element pairs that do not see each other in the descriptor."""
    exclude_model_pairs: tuple[Pair, ...] = ()
    """Element pairs removed from the neighbour list itself (DeePMD-kit's ``pair_exclude_types``)."""
    exclude_elements: tuple[str, ...] = ()
    """Elements whose atomic energy is zero."""
    fitting: Annotated[tuple[Positive, ...], Field(min_length=1)] = (240, 240, 240)
    """Widths of the fitting net."""
    fitting_activation: str = "tanh"
    """Of the fitting net."""
    fitting_timestep: bool = True
    """Learned factor on each residual step of the fitting net."""
    fitting_per_level: bool = False
    """A fitting net of its own for each level of theory; shared when false."""
    precision: Precision = "float32"
    """Of the descriptor; energies are always summed in float64."""
    fitting_precision: Precision | None = None
    """Of the fitting net; the descriptor's when not given."""

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("size"), str) and values["size"] in SIZES:
            return {**SIZES[values["size"]], **values}
        return values

    @field_validator("elements", "exclude_elements")
    @classmethod
    def _known_elements(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for symbol in symbols or ():
            _check_symbol(symbol)
        if symbols and len(set(symbols)) != len(symbols):
            raise ValueError("an element is listed twice")
        return symbols

    @field_validator("exclude_pairs", "exclude_model_pairs")
    @classmethod
    def _known_pairs(cls, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        for pair in pairs:
            for symbol in pair:
                _check_symbol(symbol)
        return pairs

    @field_validator("activation", "fitting_activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        base, _, threshold = name.lower().partition(":")
        if base in ("silut", "custom_silu"):
            try:
                float(threshold or 3.0)
            except ValueError:
                raise ValueError(f"the threshold after '{base}:' must be a number") from None
        elif name.lower() not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation{did_you_mean(name, ACTIVATIONS)}; known: {', '.join(ACTIVATIONS)}, silut[:T]"
            )
        return name.lower()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.switch_start >= self.cutoff:
            raise ValueError(f"switch_start ({self.switch_start}) must be smaller than cutoff ({self.cutoff})")
        if self.axis > self.embedding[-1]:
            raise ValueError(f"axis ({self.axis}) must not exceed the last embedding width ({self.embedding[-1]})")
        if self.convention == "deepmd" and self.mean_neighbors is not None:
            raise ValueError("mean_neighbors belongs to convention: smooth; with convention: deepmd give sel")
        if self.convention == "smooth" and self.sel is not None:
            raise ValueError(
                "sel belongs to convention: deepmd; the smooth convention keeps every neighbour, drop the key"
            )
        if self.slot_statistics and (self.convention == "smooth" or self.exclude_model_pairs):
            raise ValueError("slot_statistics needs convention: deepmd, without exclude_model_pairs")
        if self.convention == "smooth" and not self.smooth_attention:
            raise ValueError("smooth_attention: false needs convention: deepmd")
        return self


def _check_symbol(symbol: str) -> None:
    if symbol not in chemical_symbols[1:]:
        raise ValueError(f"unknown element symbol '{symbol}'{did_you_mean(symbol, chemical_symbols[1:])}")
