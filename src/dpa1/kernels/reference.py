"""The hot operations of DPA-1 in plain torch: this file is their definition.

Equation numbers refer to DPA-1, arXiv 2208.08236. Shapes: N centre atoms, K neighbour slots, C channels.
A slot without a neighbour has ``mask`` False, switch 0 and an all-zero environment row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class DenseLayer(NamedTuple):
    """y = φ(x·weight + bias) ∘ timestep + (x, ``repeats`` times side by side); weight (n_in, n_out)."""

    weight: Tensor
    bias: Tensor | None
    timestep: Tensor | None
    repeats: int


Projected = tuple[Tensor, Tensor, Tensor]  # queries, keys, values


class AttentionWeights(NamedTuple):
    """Of one layer: project_in (C, 3W) to queries, keys, values; project_out (W, C); layer norm (C,)."""

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm_scale: Tensor
    norm_offset: Tensor


class AttentionOptions(NamedTuple):
    """``normalize``: queries, keys and values have unit length; ``temperature`` multiplies the scores; ``eps`` of the norm."""

    normalize: bool
    temperature: float
    eps: float

    @property
    def bounded(self) -> bool:
        """Scores so small that their exponentials need no shift."""
        return self.normalize and abs(self.temperature) <= 20.0


@dataclass(frozen=True, eq=False)
class Keys:
    """What all attention layers of one block share.

    Attributes
    ----------
    weight: (N, K) factor on each key's exponential in the denominator, 0 in empty slots.
    factor: (N, K) factor of the key in the gate.
    row: (N, K) factor of the query in the gate, or None for 1.
    direction: (N, K, 3) unit vectors whose cosine is the gate, or None for a gate without angle.
    null_count, null_score: the term (N,)·exp(score) in the denominator that is no neighbour.
    scaled: scores A become (A − null_score)·row_i·factor_j + null_score (DeePMD-kit's smooth attention).
    """

    weight: Tensor
    factor: Tensor
    row: Tensor | None
    direction: Tensor | None
    null_count: Tensor
    null_score: float = 0.0
    scaled: bool = False

    @cached_property
    def pair_factor(self) -> Tensor:
        """(N, K, K) row_i·factor_j."""
        factor = self.factor.unsqueeze(-2)
        return factor.expand(-1, self.factor.shape[1], -1) if self.row is None else self.row.unsqueeze(-1) * factor

    @cached_property
    def gate(self) -> Tensor:
        """(N, K, K) factor on each attention weight: cosine·row_i·factor_j."""
        if self.direction is None:
            return self.pair_factor
        return (self.direction @ self.direction.transpose(-1, -2)) * self.pair_factor


def switch(distance: Tensor, start: float, cutoff: float) -> Tensor:
    """Smooth cutoff weight: 1 below ``start`` Å, 0 from ``cutoff`` Å on, twice continuously differentiable.

    1 + u³(−6u² + 15u − 10) with u = (r − start)/(cutoff − start); the smoothed 1/r of Eq. 3 is switch(r)/r.
    """
    u = ((distance - start) / (cutoff - start)).clamp(0.0, 1.0)
    return 1.0 + u**3 * (u * (15.0 - 6.0 * u) - 10.0)


def radial_entry(distance: Tensor, start: float, cutoff: float, protection: float) -> Tensor:
    """sw(r)/r, the first column of the environment matrix (Eq. 2), Å⁻¹; distance in Å, of any shape."""
    return switch(distance, start, cutoff) / (distance + protection)


def environment_matrix(vectors: Tensor, weight: Tensor, distance: Tensor, protection: float) -> Tensor:
    """Rows sw·(1/r, x/r², y/r², z/r²) of the environment matrix (Eq. 2), r protected by ``+ protection``.

    vectors (N, K, 3) Å; weight, distance (N, K). Returns (N, K, 4).
    """
    inverse = 1.0 / (distance + protection)
    radial = weight * inverse
    return torch.cat([radial.unsqueeze(-1), vectors * (radial * inverse).unsqueeze(-1)], dim=-1)


def environment(
    vectors: Tensor, mask: Tensor, dtype: torch.dtype, start: float, cutoff: float, protection: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Switch (N, K), environment matrix (N, K, 4) and unit vectors (N, K, 3) of neighbours, in ``dtype``.

    vectors (N, K, 3) Å float64, distances are formed in it; mask (N, K): an empty slot sits exactly at the cutoff, where
    every weight is zero and every derivative finite.
    """
    # Filled on the device: a number sent there could not be part of a CUDA graph.
    edge = functional.pad(vectors.new_full((1,), cutoff), (0, 2))
    placed = torch.where(mask.unsqueeze(-1), vectors, edge)
    distance = torch.linalg.vector_norm(placed, dim=-1)
    direction = (placed / distance.unsqueeze(-1)).to(dtype)
    placed, distance = placed.to(dtype), distance.to(dtype)
    weight = switch(distance, start, cutoff) * mask
    return weight, environment_matrix(placed, weight, distance, protection), direction


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·w + b over the last dimension. x (..., a), weight (a, b), bias (b,) or None."""
    return x @ weight if bias is None else functional.linear(x, weight.t(), bias)


def dense(
    x: Tensor,
    layer: DenseLayer,
    activation: Callable[[Tensor], Tensor],
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = linear,
) -> Tensor:
    """One dense layer over the last dimension."""
    y = activation(product(x, layer.weight, layer.bias))
    if layer.timestep is not None:
        y = y * layer.timestep
    if layer.repeats == 1:
        y = y + x
    elif layer.repeats == 2:
        y = y + torch.cat([x, x], dim=-1)
    return y


def fitting(
    x: Tensor,
    layers: Sequence[DenseLayer],
    output: DenseLayer,
    activation: Callable[[Tensor], Tensor],
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = linear,
) -> Tensor:
    """The fitting net: descriptors (N, D), hidden layers, a linear layer to one number per atom. Returns (N,)."""
    for layer in layers:
        x = dense(x, layer, activation, product)
    return product(x, output.weight, output.bias).squeeze(-1)


def embedding(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Embedding net on [s, table[pair]]: radial (N, K); pair (N, K) row of ``table`` (T, c), or None. Returns (N, K, C)."""
    x = radial.unsqueeze(-1)
    if pair is not None and table is not None:
        x = torch.cat([x, table[pair]], dim=-1)
    for layer in layers:
        x = dense(x, layer, activation)
    return x


training_embedding = (
    embedding  # as a training step asks for it: once differentiable by the weights, many pairs of few kinds
)


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) over the last dimension."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp(min=1e-24))


def gated_attention(query: Tensor, key: Tensor, value: Tensor, keys: Keys, bounded: bool) -> Tensor:
    """Σ_j P_ij·gate_ij·v_j with P_ij = exp(A_ij) / (n₀·exp(A₀) + Σ_k w_k·exp(A_ik)), A = q·k.

    The null term n₀·exp(A₀) stands for whatever is not a neighbour. In the smooth convention w is the switch and
    n₀ = 1, A₀ = 0, so a key fades out continuously at the cutoff; in DeePMD-kit's, n₀ counts empty slots.

    query, key, value (N, K, C). ``bounded`` promises |A| ≤ 40, where exp needs no shift. Returns (N, K, C).
    """
    scores = query @ key.transpose(-1, -2)
    if keys.scaled:
        scores = (scores - keys.null_score) * keys.pair_factor + keys.null_score
    return attend(scores, value, keys.weight, keys.gate, keys.null_count, keys.null_score, bounded)


def attend(
    scores: Tensor, value: Tensor, weight: Tensor, gate: Tensor, null_count: Tensor, null_score: float, bounded: bool
) -> Tensor:
    """``gated_attention`` from its scores (N, K, K), rows are queries; weight (N, K); gate (N, K, K); null_count (N,)."""
    null = null_count[:, None, None]
    if bounded:
        exponentials = torch.exp(scores)
        null = null * math.exp(null_score)
    else:
        # An empty slot's score is meaningless and may be huge: it must set neither the shift nor an exponential.
        scores = scores.masked_fill((weight == 0.0).unsqueeze(-2), float("-inf"))
        top = scores.detach().amax(-1, keepdim=True)
        top = torch.where(null > 0.0, top.clamp(min=null_score), top)
        exponentials = torch.exp(scores - top)
        null = torch.where(null > 0.0, null * torch.exp(null_score - top), 0.0)
    denominator = null + exponentials @ weight.unsqueeze(-1)
    # Dividing the (N, K, C) result costs less than dividing the (N, K, K) weights.
    return ((exponentials * gate) @ value) * denominator.reciprocal()


def layer_norm(x: Tensor, scale: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension with the biased variance."""
    return functional.layer_norm(x, x.shape[-1:], scale, offset, eps)


def attention_layer(
    features: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
    attention: Callable[[Tensor, Tensor, Tensor, Keys, bool], Tensor] = gated_attention,
) -> Tensor:
    """G ← LayerNorm(G + W_out·(P·V)), P the gated attention weights (Eqs. 6–10). features (N, K, C) → (N, K, C)."""
    return projected_layer(features, *project(features, weights, options), keys, weights, options, attention)


def project(features: Tensor, weights: AttentionWeights, options: AttentionOptions) -> Projected:
    """Queries (the temperature included), keys and values of features (N, K, C), each (N, K, W)."""
    query, key, value = functional.linear(features, weights.in_weight.t(), weights.in_bias).chunk(3, dim=-1)
    if options.normalize:
        query, key, value = unit(query), unit(key), unit(value)
    return query * options.temperature, key, value


def projected_layer(
    features: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Keys,
    weights: AttentionWeights,
    options: AttentionOptions,
    attention: Callable[[Tensor, Tensor, Tensor, Keys, bool], Tensor] = gated_attention,
) -> Tensor:
    """``attention_layer`` from what ``project`` returns; its input projection does not enter."""
    attended = attention(query, key, value, keys, options.bounded)
    update = functional.linear(attended, weights.out_weight.t(), weights.out_bias)
    return layer_norm(features + update, weights.norm_scale, weights.norm_offset, options.eps)


def spline(place: Tensor, row: Tensor, tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Quintic B-splines on equally spaced knots: Σ_m B_m(place)·T[row + m], m = 0…5, for tables that share their knots.

    place (...,) in 0…1 is the fraction of a knot interval, row (...,) the first of its six rows in each table (R, C_t).
    The weights follow from the recursion of de Boor (A Practical Guide to Splines, ch. IX); the sum has four continuous
    derivatives. Returns one (..., C_t) per table.
    """
    weights = [torch.ones_like(place)]
    for d in range(1, 6):
        zero = [torch.zeros_like(place)]
        left, right = zero + weights, weights + zero
        weights = [((place + (d - m)) * left[m] + (m + 1 - place) * right[m]) / d for m in range(d + 1)]
    sums: list[Tensor] = []
    for table in tables:
        sums.append(torch.stack([weight.unsqueeze(-1) * table[row + m] for m, weight in enumerate(weights)]).sum(0))
    return tuple(sums)


def contraction(features: Tensor, rows: Tensor) -> Tensor:
    """M = Gᵀ R over the neighbours (Eq. 11, before its division). features (N, K, C), rows (N, K, 4) → (N, C, 4)."""
    # In this order the products of small matrices are several times faster on a CPU than as Gᵀ R.
    return (rows.transpose(-1, -2) @ features).transpose(-1, -2)


def batched(a: Tensor, b: Tensor) -> Tensor:
    """a·b of stacks of matrices: (N, i, j), (N, j, k) → (N, i, k)."""
    return torch.bmm(a, b)


def contracted_embedding(
    radial: Tensor,
    pair: Tensor | None,
    table: Tensor | None,
    layers: Sequence[DenseLayer],
    activation: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    """The contraction of what the embedding net makes of every pair: arguments as ``embedding``, rows (N, K, 4) → (N, C, 4)."""
    return contraction(embedding(radial, pair, table, layers, activation), rows)


training_contraction = contracted_embedding  # likewise


def contracted_spline(place: Tensor, row: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """The contraction of tabulated features: place, row (N, K), table (R, C), rows (N, K, 4) → (N, C, 4)."""
    return contraction(spline(place, row, (table,))[0], rows)


class Lookup(NamedTuple):
    """How a pair of E elements that are c apart from each other is turned into its tabulated features.

    Attributes
    ----------
    start, cutoff, protection: of the environment matrix, Å.
    shift, radial_scale, angular_scale: (E,) statistics of the centre's element, Å⁻¹.
    centred: whether the first column of the matrix is (s − shift)/scale, as in DeePMD-kit, or s/scale.
    inverse, origin, cells, row: (E²,) of centre·E + neighbour: x = (s − shift)/scale·inverse + origin counts cells from ``row``.
    table: (R, C) spline coefficients; also sets the precision.
    """

    start: float
    cutoff: float
    protection: float
    shift: Tensor
    radial_scale: Tensor
    angular_scale: Tensor
    centred: bool
    inverse: Tensor
    origin: Tensor
    cells: Tensor
    row: Tensor
    table: Tensor


def tabulated_pairs(
    vectors: Tensor, ends: Tensor, centre_type: Tensor, neighbor_type: Tensor, lookup: Lookup
) -> Tensor:
    """M (N, C, 4) of N atoms from their pairs alone: environment matrix, tabulated features, and both contracted.

    vectors (P, 3) Å float64, sorted by centre; ends (N,) where the pairs of each atom end; element indices centre_type (N,),
    neighbor_type (P,). No pair may lie outside the table.
    """
    atoms = len(ends)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    centre = torch.repeat_interleave(torch.arange(atoms, device=ends.device), counts)
    kind = centre_type[centre]
    mask = torch.ones(1, len(vectors), dtype=torch.bool, device=vectors.device)
    lengths = (lookup.start, lookup.cutoff, lookup.protection)
    matrix = environment(vectors.unsqueeze(0), mask, lookup.table.dtype, *lengths)[1].squeeze(0)
    radial = (matrix[:, 0] - lookup.shift[kind]) / lookup.radial_scale[kind]
    first = radial if lookup.centred else matrix[:, 0] / lookup.radial_scale[kind]
    rows = torch.cat([first.unsqueeze(-1), matrix[:, 1:] / lookup.angular_scale[kind].unsqueeze(-1)], dim=-1)
    pair = neighbor_type + len(lookup.shift) * kind
    x = radial * lookup.inverse[pair] + lookup.origin[pair]
    cell = torch.minimum(x.detach().floor().clamp(min=0), lookup.cells[pair] - 1)
    features = spline(x - cell, lookup.row[pair] + cell.long(), (lookup.table,))[0]
    zero = features.new_zeros(atoms, features.shape[1], 4)
    return zero.index_add(0, centre, features.unsqueeze(-1) * rows.unsqueeze(-2))


def pair_sums(
    slope: Tensor, vectors: Tensor, centre: Tensor, neighbor: Tensor, frame: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Forces F_i = Σ s_ij − Σ s_ji (N, 3) and virials W = −Σ s ⊗ v (F, 3, 3) of frames from the energy's slopes along pairs.

    slope, vectors (P, 3): s = ∂E/∂v, and v from centre (P,) to neighbor (P,); frame (N,): that of each atom.
    """
    forces = slope.new_zeros(len(frame), 3).index_add(0, centre, slope).index_add(0, neighbor, -slope)
    if frames == 1:  # without nine numbers per pair
        return forces, -(slope.T @ vectors).unsqueeze(0)
    outer = slope.unsqueeze(-1) * vectors.unsqueeze(-2)
    return forces, slope.new_zeros(frames, 3, 3).index_add(0, frame[centre], -outer)


def descriptor_product(matrix: Tensor, axis: int, appended: Tensor | None) -> Tensor:
    """D = M · (M[:axis])ᵀ, flattened row-major, and what is appended. matrix (N, C, 4), (N, T) → (N, C·axis + T)."""
    product = (matrix @ matrix[:, :axis].transpose(-1, -2)).flatten(1)
    return product if appended is None else torch.cat([product, appended], dim=-1)
