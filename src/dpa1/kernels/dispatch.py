"""Which sibling of a hot operation runs: a fast one where it is proven, else the reference.

A fast path belongs to one operation and one kind of device. On first use in a precision it is compared with the reference
(values, first and second derivatives, see ``proof``); if it differs, that is said aloud and the reference runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dpa1.kernels import reference
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, DenseLayer, Keys

log = logging.getLogger("dpa1")
_proving = threading.RLock()


@dataclass(frozen=True)
class Path:
    """A fast sibling: ``module`` offers ``run`` with the reference's arguments and ``supports`` (same arguments → bool).

    ``operation`` names a function of ``reference``, ``device`` a device type, ``title`` is for people. Most are chosen by the
    function of that name below, those with a name of their own by the kernels that use them.
    """

    operation: str
    device: str
    module: str
    title: str
    precisions: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    @property
    def run(self) -> Callable[..., Any]:
        return import_module(self.module).run

    def supports(self, *arguments: Any) -> bool:
        return bool(import_module(self.module).supports(*arguments))

    def error(self, dtype: torch.dtype, device: str) -> float | None:
        """Largest difference from the reference on tiny systems, relative to the largest value; None: not for this machine."""
        from dpa1.kernels import proof

        return proof.error(self.operation, self.run, self.supports, dtype, device)


PRODUCTS = Path("linear", "cpu", "dpa1.kernels.products", "products of matrices by OpenBLAS")
BATCHED = Path("batched", "cpu", "dpa1.kernels.openblas", "products of many matrices by OpenBLAS")
INTERPOLATED = Path(
    "training_embedding", "cpu", "dpa1.kernels.interpolated", "embedding net between nodes, in training"
)
DENSITY = Path("training_contraction", "cpu", "dpa1.kernels.density", "embedding net contracted on nodes, in training")
COMPILED_DENSITY = Path(
    "training_contraction",
    "cpu",
    "dpa1.kernels.compiled_density",
    "embedding net contracted by compiled loops, in training",
)
PAIRS = Path("tabulated_pairs", "cpu", "dpa1.kernels.compiled_pairs", "tables without attention from pairs alone")
PATHS = (
    PRODUCTS,
    BATCHED,
    INTERPOLATED,
    COMPILED_DENSITY,
    DENSITY,
    PAIRS,
    Path("environment", "cuda", "dpa1.kernels.gpu.environment", "environment matrix in one kernel"),
    Path("embedding", "cuda", "dpa1.kernels.gpu.embedding", "embedding net in one kernel"),
    Path("gated_attention", "cuda", "dpa1.kernels.gpu.attention", "attention tile by tile"),
    Path("contraction", "cuda", "dpa1.kernels.gpu.contraction", "contraction over neighbours in one kernel"),
    Path("environment", "cpu", "dpa1.kernels.compiled_environment", "environment matrix in a compiled loop"),
    Path("environment", "cpu", "dpa1.kernels.environment", "environment matrix with hand-derived derivatives"),
    Path("embedding", "cpu", "dpa1.kernels.embedding", "embedding net with its slope carried along"),
    Path("descriptor_product", "cpu", "dpa1.kernels.compiled_descriptor", "descriptor in a compiled loop"),
    Path("pair_sums", "cpu", "dpa1.kernels.compiled_sums", "forces and virials in a compiled loop"),
    Path("fitting", "cpu", "dpa1.kernels.fitting", "fitting net with hand-derived derivatives"),
    Path("contracted_embedding", "cpu", "dpa1.kernels.contracted_embedding", "embedding net contracted with its slope"),
    Path("contracted_spline", "cpu", "dpa1.kernels.compiled_spline", "spline tables contracted in a compiled loop"),
    Path("contracted_spline", "cpu", "dpa1.kernels.contracted_spline", "spline tables contracted some atoms at a time"),
    Path("attention_layer", "cpu", "dpa1.kernels.compiled_attention", "attention layer with compiled loops"),
    Path("attention_layer", "cpu", "dpa1.kernels.attention", "attention layer with hand-derived derivatives"),
    Path("projected_layer", "cpu", "dpa1.kernels.compiled_projected", "attention layer on tables with compiled loops"),
    Path("projected_layer", "cpu", "dpa1.kernels.projected", "attention layer on tabulated queries, keys and values"),
    Path("spline", "cpu", "dpa1.kernels.table", "spline tables as weighted sums of rows"),
    Path("spline", "cuda", "dpa1.kernels.gpu.spline", "spline tables tile by tile"),
    Path("spline", "cuda", "dpa1.kernels.table", "spline tables as weighted sums of rows"),
)  # fmt: skip


def environment(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.environment``."""
    return _pick("environment", dtype, vectors.device, vectors, mask, dtype, start, cutoff, protection)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``reference.linear``."""
    return _pick("linear", x.dtype, x.device, x, weight, bias)


def batched(a: Tensor, b: Tensor) -> Tensor:
    """See ``reference.batched``."""
    return _pick("batched", a.dtype, a.device, a, b)


def embedding(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """See ``reference.embedding``."""
    return _pick("embedding", radial.dtype, radial.device, radial, pair, table, layers, activation)


def fitting(
    x: Tensor, layers: Sequence[DenseLayer], output: DenseLayer, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """See ``reference.fitting``. Without a path of its own, it is made of linear layers."""
    return _pick("fitting", x.dtype, x.device, x, layers, output, activation)


def gated_attention(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> Tensor:
    """See ``reference.gated_attention``."""
    return _pick("gated_attention", query.dtype, query.device, query, key, value, keys, bounded)


def attention_layer(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> Tensor:
    """See ``reference.attention_layer``. Without a path of its own, it is made of linear layers and gated attention."""
    return _pick("attention_layer", features.dtype, features.device, features, keys, weights, options)


def projected_layer(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> Tensor:
    """See ``reference.projected_layer``."""
    arguments = (features, query, key, value, keys, weights, options)
    return _pick("projected_layer", features.dtype, features.device, *arguments)


def spline(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """See ``reference.spline``."""
    return _pick("spline", place.dtype, place.device, place, row, tables)


def contraction(features: Tensor, rows: Tensor) -> Tensor:
    """See ``reference.contraction``."""
    return _pick("contraction", features.dtype, features.device, features, rows)


def descriptor_product(matrix: Tensor, axis: int, appended: Tensor | None) -> Tensor:
    """See ``reference.descriptor_product``."""
    return _pick("descriptor_product", matrix.dtype, matrix.device, matrix, axis, appended)


def pair_sums(
    slope: Tensor, vectors: Tensor, centre: Tensor, neighbor: Tensor, frame: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """See ``reference.pair_sums``."""
    return _pick("pair_sums", slope.dtype, slope.device, slope, vectors, centre, neighbor, frame, frames)


def contracted_embedding(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """See ``reference.contracted_embedding``. Without a path of its own, it is made of its two parts."""
    arguments = (radial, pair, table, layers, activation, rows)
    return _pick("contracted_embedding", radial.dtype, radial.device, *arguments)


def contracted_spline(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """See ``reference.contracted_spline``. Without a path of its own, it is made of its two parts."""
    return _pick("contracted_spline", place.dtype, place.device, place, row, table, rows)


def _layer_of_parts(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> Tensor:
    return reference.attention_layer(features, keys, weights, options, gated_attention)


def _pick(operation: str, dtype: torch.dtype, device: torch.device, *arguments: Any) -> Any:
    for path in PATHS:
        mine = path.operation == operation and path.device == device.type
        if mine and path.supports(*arguments) and holds(path, dtype, device.type):
            return path.run(*arguments)
    if operation == "attention_layer":
        return _layer_of_parts(*arguments)
    if operation == "fitting":
        x, layers, output, activation = arguments
        return reference.fitting(x, layers, output, activation, linear)
    if operation == "contracted_embedding":
        return contraction(embedding(*arguments[:-1]), arguments[-1])
    if operation == "contracted_spline":
        place, row, table, rows = arguments
        return contraction(spline(place, row, (table,))[0], rows)
    if operation == "projected_layer":
        attended: Any = reference.projected_layer
        return attended(*arguments, gated_attention)
    return getattr(reference, operation)(*arguments)


def holds(path: Path, dtype: torch.dtype, device: str) -> bool:
    """Whether a path agrees with the reference here, found out once; a disagreement is logged as a warning."""
    with _proving:  # threads that meet a path together prove it once
        return proven(path, dtype, device)


@cache
def proven(path: Path, dtype: torch.dtype, device: str) -> bool:
    from dpa1.kernels import proof

    error = path.error(dtype, device)
    good = error is not None and error <= proof.TOLERANCE.get(dtype, 0.0)
    if error is not None and not good:
        log.warning(
            "the fast path '%s' differs from the reference by %.1e in %s on %s: a slower way runs instead",
            path.title, error, dtype, device,
        )  # fmt: skip
    return good


def report(device: str) -> list[dict[str, Any]]:
    """Every fast path for a device, each in both precisions, with its error and whether it is used."""
    kind = device.partition(":")[0]
    tried = [(path, dtype) for path in PATHS if path.device == kind for dtype in path.precisions]
    return [
        {
            "operation": path.operation,
            "path": path.title,
            "precision": str(dtype).removeprefix("torch."),
            "error": error,
            "ok": holds(path, dtype, kind),
        }
        for path, dtype in tried
        if (error := path.error(dtype, device)) is not None
    ]
