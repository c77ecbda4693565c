"""The DPA-1 descriptor: environment matrix → pair features → attention → contraction (arXiv 2208.08236, Eqs. 2–12).

Where the two conventions differ (docs/model.md derives both):

=====================  ====================================  ============================================
step                   smooth (default)                      deepmd
=====================  ====================================  ============================================
mean of radial input   enters the embedding net only         subtracted from the environment matrix
contraction divisor    mean neighbour number of the data     sel
attention              sw_j·e^A / (1 + Σ sw·e^A)             softmax over sel slots
empty slots            do not exist                          counted as DeePMD-kit computes them
=====================  ====================================  ============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpa1.config.model import ModelConfig
from dpa1.kernels import dispatch, reference
from dpa1.kernels.nodes import Grid
from dpa1.kernels.reference import Projected
from dpa1.model.attention import NeighborAttention, make_keys
from dpa1.model.elements import TypeEmbedding
from dpa1.model.networks import EmbeddingNet
from dpa1.model.rows import Rows
from dpa1.model.table import TableSet, tabulated_features, tabulated_product


class Descriptor(nn.Module):
    """Rows of neighbours → (n, D) descriptors, invariant to translation, rotation and the order of like atoms.

    Buffers ``mean`` (E,) and ``scale`` (E, 2) normalise the environment matrix: radial mean, radial and angular scale,
    per centre element; they are measured on the training data. With ``slot_statistics`` they are (E, sel) and (E, sel, 2).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig, elements: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        width = config.type_embedding
        types_in = width if config.one_sided else 2 * width
        self.type_embedding = TypeEmbedding(
            elements, width, bias=config.type_embedding_bias, electrons=config.electron_configuration
        )

        def net(n_in: int) -> EmbeddingNet:
            return EmbeddingNet(n_in, config.embedding, config.activation, timestep=config.timestep_residual)

        strip = config.type_input == "strip"
        self.embedding = net(1 if strip else 1 + types_in)
        self.type_net = net(types_in) if strip else None
        self.attention = nn.ModuleList(NeighborAttention(config) for _ in range(config.attention_layers))
        slots = (config.sel,) if config.slot_statistics and config.sel else ()
        self.register_buffer("mean", torch.zeros(len(elements), *slots))
        self.register_buffer("scale", torch.ones(len(elements), *slots, 2))

    @property
    def width(self) -> int:
        """Length D of the descriptor."""
        config = self.config
        return config.embedding[-1] * config.axis + (config.type_embedding if config.append_type_embedding else 0)

    @property
    def types_fade(self) -> bool:
        """``type_input: strip``: whether the types' factor is multiplied by the switch."""
        faded = self.config.convention == "smooth" or self.config.smooth_attention
        return self.type_net is not None and faded

    def forward(self, rows: Rows, tables: TableSet | None = None) -> Tensor:
        """``tables``, where given, stand for the embedding and the first layer's projections."""
        config = self.config
        table = self.type_embedding()
        mean, scale = self.mean[rows.centre_type], self.scale[rows.centre_type]
        if not config.slot_statistics:
            mean, scale = mean.unsqueeze(1), scale.unsqueeze(1)
        width = rows.mask.shape[1]
        shift, radial_scale, angular_scale = mean[:, :width], scale[:, :width, 0], scale[:, :width, 1:]
        if config.convention == "deepmd":
            radial = (rows.environment[..., 0] - shift) / radial_scale
            first = (radial * rows.mask).unsqueeze(-1)
            matrix = torch.cat([first, rows.environment[..., 1:] / angular_scale], dim=-1)
        else:
            # Without the mean: a neighbour at the cutoff must leave the contraction at exactly zero.
            matrix = rows.environment / torch.cat([radial_scale.unsqueeze(-1), angular_scale.expand(-1, -1, 3)], -1)
            radial = matrix[..., 0] - shift / radial_scale
        product = self._product(radial, matrix, rows, table, tables)
        if config.convention == "deepmd" and config.subtract_mean:
            product = product + self._empty_slots(rows, -mean / scale[..., 0], table)
        return self.finish(product, rows.centre_type, table)

    def finish(self, product: Tensor, centre_type: Tensor, table: Tensor | None = None) -> Tensor:
        """The descriptors from features contracted over the neighbours (n, C, 4); table: the type embeddings, where known."""
        config = self.config
        count = config.sel if config.convention == "deepmd" else config.mean_neighbors
        assert count is not None
        appended: Tensor | None = None
        if config.append_type_embedding:
            appended = (self.type_embedding() if table is None else table)[centre_type]
        return dispatch.descriptor_product(product / count, config.axis, appended)

    def training_grid(self, closest: float, present: Tensor, centre_type: Tensor, neighbor_type: Tensor) -> Grid | None:
        """Splines that stand for the embedding net in a training step on pairs (P,) of these elements, none closer than so
        many Å; None where there is nothing to gain. present: the centres' elements, each once."""
        config = self.config
        if config.slot_statistics:
            return None
        # The input falls with the distance: from that of the closest pair to that of an empty slot.
        distance = self.mean.new_tensor([closest, config.cutoff])
        ends = reference.radial_entry(distance, config.switch_start, config.cutoff, config.environment_protection)
        low, high = torch.aminmax((ends - self.mean[present, None]) / self.scale[present, :1])
        pair, table = None, None
        if self.type_net is None:
            pair, table = self._type_pairs(neighbor_type, centre_type, self.type_embedding())
        return self.embedding.training_grid(float(low), float(high), len(neighbor_type), pair, table)

    def _product(self, radial: Tensor, matrix: Tensor, rows: Rows, table: Tensor, tables: TableSet | None) -> Tensor:
        """(n, K) radial inputs, (n, K, 4) environment matrix → (n, C, 4) features contracted over the neighbours."""
        if not self.attention and self.type_net is None:
            if tables is not None:
                return tabulated_product(self, tables, radial, matrix, rows, table)
            pair, types = self._type_pairs(rows.neighbor_type, rows.centre_type.unsqueeze(1), table)
            return self.embedding.contracted_pairs(radial, pair, types, matrix)
        projected: Projected | None = None
        if tables is None:
            features = self.pair_features(radial, rows.neighbor_type, rows.centre_type.unsqueeze(1), rows.weight, table)
        else:
            features, projected = tabulated_features(self, tables, radial, rows, table)
        if self.attention:
            keys = make_keys(self.config, rows)
            for layer in self.attention:
                features = layer(features, keys, projected)
                projected = None
        return dispatch.contraction(features, matrix)

    def pair_features(
        self, radial: Tensor, neighbor_type: Tensor, centre_type: Tensor, weight: Tensor, table: Tensor
    ) -> Tensor:
        """(n, K) radial inputs and element indices → (n, K, C)."""
        if self.type_net is None:
            pair, types = self._type_pairs(neighbor_type, centre_type, table)
            return self.embedding.pairs(radial, pair, types)
        return self.with_types(self.embedding.pairs(radial, None, None), neighbor_type, centre_type, weight, table)

    def with_types(
        self, distance: Tensor, neighbor_type: Tensor, centre_type: Tensor, weight: Tensor, table: Tensor
    ) -> Tensor:
        """``type_input: strip``: what the embedding made of the distance (n, K, C), times one plus the types' factor."""
        assert self.type_net is not None
        pair, types = self._type_pairs(neighbor_type, centre_type, table)
        # The type factor takes few distinct values: compute each once and look it up.
        factor = self.type_net(types)[pair]
        if self.types_fade:
            factor = factor * weight.unsqueeze(-1)
        return distance * factor + distance

    def _type_pairs(self, neighbor_type: Tensor, centre_type: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """(n, K) row of each pair in the inputs (T, c) of all that can be told apart."""
        if self.config.one_sided:
            return neighbor_type, table
        n = len(table)
        types = torch.cat([table.repeat(n, 1), table.repeat_interleave(n, 0)], dim=-1)
        return neighbor_type + n * centre_type, types

    def _empty_slots(self, rows: Rows, radial: Tensor, table: Tensor) -> Tensor:
        """What DeePMD-kit's unfilled slots add to the contraction when the mean is subtracted. (n, C, 4)."""
        neighbor_type = rows.first_type.unsqueeze(1).expand(radial.shape)
        features = self.pair_features(
            radial, neighbor_type, rows.centre_type.unsqueeze(1), torch.zeros_like(radial), table
        )
        for layer in self.attention:
            features = cast(NeighborAttention, layer).phantom(features)
        count = rows.unfilled_slots.unsqueeze(1)
        if self.config.slot_statistics:
            # The last ones, each with statistics of its own.
            place = torch.arange(radial.shape[1], device=radial.device)
            count = (place >= radial.shape[1] - count).to(radial.dtype)
        return reference.contraction(features, functional.pad((radial * count).unsqueeze(-1), (0, 3)))
