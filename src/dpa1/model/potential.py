"""Potential: structures in, energies out; forces and virial are derived here and nowhere else.

====================  ===========  ===================  ==========================================
key of ``predict``    shape        unit                 sign
====================  ===========  ===================  ==========================================
energy                (F,)         eV                   total energy of each frame
atomic_energy         (N,)         eV
forces                (N, 3)       eV/Å                 −∂E/∂r
virial                (F, 3, 3)    eV                   −∂E/∂ε, positive = the cell wants to expand
descriptor            (N, D)       –
====================  ===========  ===================  ==========================================
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from dpa1.batch import Batch
from dpa1.config.model import ModelConfig
from dpa1.errors import UserError, did_you_mean
from dpa1.frames import Frame
from dpa1.kernels import dispatch
from dpa1.kernels.nodes import Grid
from dpa1.kernels.wanted import geometry_only
from dpa1.model import by_pairs, memory
from dpa1.model.descriptor import Descriptor
from dpa1.model.initial import spread_radial_steps
from dpa1.model.networks import FittingNet
from dpa1.model.rows import RowPlan, Rows, plan_rows, rows_of
from dpa1.model.slots import deepmd_order, nearest
from dpa1.model.table import TableSet
from dpa1.model.tabulable import Tabulable
from dpa1.model.threads import threads_for_blocks

if TYPE_CHECKING:
    from dpa1.simulate.ase import Dpa1Calculator

DTYPES = {"float32": torch.float32, "float64": torch.float64}
CHUNK_SLOTS = 2000  # neighbour slots evaluated at once: what attention makes of them in float64 stays in a CPU's cache


Level = int | Tensor  # one level's index, or (N,) that of each atom
Pieces = tuple[Tensor, Tensor, Tensor]  # atomic energies, slopes along the pair vectors, descriptors


@dataclass(frozen=True)
class View:
    """A batch as one model sees it: (N,) element indices, the first of each atom's frame, its P pairs (Å), and any tables."""

    types: Tensor
    first_type: Tensor
    centre: Tensor
    neighbor: Tensor
    vectors: Tensor
    tables: TableSet | None


class Potential(Tabulable):
    """A DPA-1 potential. ``forward`` gives atomic energies; ``predict`` everything else.

    Parameters
    ----------
    config: complete model configuration (elements set; ``mean_neighbors`` or ``sel`` set).
    levels: names of the levels of theory it holds, each with its own energy bias (and, with ``fitting_per_level``, its own
        fitting net: that of the first is ``fitting``, those of the others ``level_fittings``).
    """

    energy_bias: Tensor
    _type_of: Tensor
    _counted: Tensor
    _visible_pairs: Tensor
    _listed_pairs: Tensor

    def __init__(self, config: ModelConfig, levels: Sequence[str] = ("default",)) -> None:
        super().__init__()
        if config.elements is None:
            raise UserError("model: 'elements' is not set; list them or train from data that has them")
        if config.convention == "deepmd" and config.sel is None:
            raise UserError("model: convention: deepmd needs 'sel', the number of neighbour slots per atom")
        if config.convention == "smooth" and config.mean_neighbors is None:
            raise UserError("model: 'mean_neighbors' is not set; give it or train from data")
        self.config = config
        self.elements = config.elements
        self.levels = tuple(levels)
        self.info: dict[str, Any] = {}
        self.replay: tuple[Frame, ...] = ()  # labelled frames it was trained on; see ``dpa1.model.replay``
        self._most_slots: int | None = None  # of one block, once memory has run out
        self.descriptor = Descriptor(config, self.elements)
        self.fitting = FittingNet(
            self.descriptor.width, config.fitting, config.fitting_activation, timestep=config.fitting_timestep
        )
        if config.convention == "smooth":
            spread_radial_steps(self.descriptor, self.fitting)
        others = self.levels[1:] if config.fitting_per_level else ()
        self.level_fittings = nn.ModuleList(copy.deepcopy(self.fitting) for _ in others)
        self.register_buffer("energy_bias", torch.zeros(len(self.levels), len(self.elements), dtype=torch.float64))
        lookup = torch.full((119,), -1, dtype=torch.int64)
        for index, symbol in enumerate(self.elements):
            lookup[atomic_numbers[symbol]] = index
        self.register_buffer("_type_of", lookup, persistent=False)
        counted = torch.tensor([symbol not in config.exclude_elements for symbol in self.elements])
        self.register_buffer("_counted", counted, persistent=False)
        self._hides_types = self._register_pairs("_visible_pairs", config.exclude_pairs)
        self._hides_pairs = self._register_pairs("_listed_pairs", config.exclude_model_pairs)
        self.set_precision(config.precision, config.fitting_precision or config.precision)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        """torch's casts (``float()``, ``to(dtype)``) change the networks; the energy bias stays float64."""
        bias = self.energy_bias
        super()._apply(fn, recurse)
        self.energy_bias = bias.to(self.energy_bias.device)
        return self

    def _register_pairs(self, name: str, excluded: tuple[tuple[str, str], ...]) -> bool:
        allowed = torch.ones(len(self.elements), len(self.elements), dtype=torch.bool)
        index = {symbol: k for k, symbol in enumerate(self.elements)}
        for a, b in excluded:
            if a in index and b in index:
                allowed[index[a], index[b]] = allowed[index[b], index[a]] = False
        self.register_buffer(name, allowed, persistent=False)
        return bool(excluded)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def trained_elements(self) -> tuple[str, ...]:
        """The elements its training data held; all it has a place for when the file does not say."""
        return tuple(self.info.get("trained_elements", self.elements))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the descriptor."""
        return self.descriptor.mean.dtype

    def set_precision(self, descriptor: str, fitting: str | None = None) -> Potential:
        """Convert the networks in place; the energy bias and all sums stay float64."""
        self.descriptor.to(DTYPES[descriptor])
        self.fitting.to(DTYPES[fitting or descriptor])
        self.level_fittings.to(DTYPES[fitting or descriptor])
        return self

    def types(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers → element indices of this model.

        Raises
        ------
        UserError
            for an element the model does not know; the sentence lists those it does.
        """
        types = self._type_of[numbers]
        if bool((types < 0).any()):
            unknown = sorted({chemical_symbols[int(z)] for z in numbers[types < 0]})
            raise UserError(f"the model does not know {', '.join(unknown)}; it knows {', '.join(self.elements)}")
        return types

    def forward(self, batch: Batch, level: str | None = None) -> Tensor:
        """Atomic energies (N,) eV float64 of a batch built with this model's cutoff."""
        return self._whole(self._view(batch), self.levels_of(batch, level), derive=False, keep_descriptor=False)[0]

    def predict(
        self,
        batch: Batch,
        *,
        forces: bool = True,
        virial: bool = True,
        descriptor: bool = False,
        create_graph: bool = False,
        level: str | None = None,
    ) -> dict[str, Tensor]:
        """All quantities of the table above. ``create_graph`` keeps them differentiable for training.

        ``level``: that of all frames; without it each frame's own where the batch says, else the only one there is.

        Without it the atoms are evaluated in chunks, so memory stays bounded for any size.
        """
        index = self.levels_of(batch, level)
        if create_graph:
            return self._predict(batch, index, forces, virial, descriptor, self._whole)
        if torch.is_inference_mode_enabled():
            # Forces are derivatives, which this mode forbids.
            with torch.inference_mode(False), torch.no_grad():
                return self.predict(
                    batch.differentiable(), forces=forces, virial=virial, descriptor=descriptor, level=level
                )
        what = f"{len(batch.numbers)} atoms with {len(batch.centre)} pairs of neighbors"
        with memory.enough(what, memory.FEWER, batch.positions.device), threads_for_blocks(len(batch.centre)):
            return self._predict(batch, index, forces, virial, descriptor, self._in_chunks)

    def _predict(
        self, batch: Batch, index: Level, forces: bool, virial: bool, descriptor: bool, evaluate: Callable[..., Pieces]
    ) -> dict[str, Tensor]:
        view = self._view(batch)
        atomic, slope, rows = evaluate(view, index, forces or virial, descriptor)
        out = {"atomic_energy": atomic, "energy": atomic.new_zeros(len(batch)).index_add(0, batch.frame, atomic)}
        if forces or virial:
            sums = dispatch.pair_sums(slope, view.vectors, view.centre, view.neighbor, batch.frame, len(batch))
            asked = {"forces": forces, "virial": virial}
            out |= {name: value for name, value in zip(asked, sums, strict=True) if asked[name]}
        if descriptor:
            out["descriptor"] = rows
        return out

    def calculator(self, **options: Any) -> Dpa1Calculator:
        """An ASE calculator; see ``dpa1.simulate.ase.Dpa1Calculator`` for the options (dtype, device, skin…)."""
        from dpa1.simulate.ase import Dpa1Calculator

        return Dpa1Calculator(self, **options)

    def level_index(self, level: str | None) -> int:
        """Row of the energy bias that belongs to a level of theory; a model of one level needs no name.

        Raises
        ------
        UserError
            for an unknown or missing name, listing those there are.
        """
        if level is None and len(self.levels) == 1:
            return 0
        if level is None:
            raise UserError(
                f"this model holds several levels of theory ({', '.join(self.levels)}); name one of them with --level, from "
                "Python with level=…"
            )
        if level not in self.levels:
            hint = did_you_mean(level, self.levels)
            raise UserError(
                f"--level: unknown level of theory '{level}'; this model holds {', '.join(self.levels)}{hint}"
            )
        return self.levels.index(level)

    def levels_of(self, batch: Batch, level: str | None = None) -> Level:
        """The named level's row for all atoms, or each atom's (N,) by the levels of the batch.

        Raises
        ------
        UserError
            as ``level_index``.
        """
        if level is None and len(self.levels) > 1 and batch.level is not None:
            return batch.level[batch.frame]
        return self.level_index(level)

    def _view(self, batch: Batch) -> View:
        """The pairs the model sees: all within the cutoff; deepmd convention: the nearest ``sel`` of each atom."""
        types = self.types(batch.numbers)
        tables = self.tables.prepare(self, types) if self.tables is not None else None
        centre, neighbor, shift = batch.centre, batch.neighbor, batch.shift
        keep: Tensor | None = None
        if self.config.slot_statistics:
            centre, neighbor, shift = deepmd_order(batch, self.cutoff, int(self.config.sel or 0))
        elif self.config.convention == "deepmd":
            keep = nearest(batch, int(self.config.sel or 0))
        if self._hides_pairs:
            listed = self._listed_pairs[types[centre], types[neighbor]]
            keep = listed if keep is None else keep & listed
        if keep is not None and not bool(keep.all()):
            centre, neighbor, shift = centre[keep], neighbor[keep], shift[keep]
        positions = batch.positions
        vectors = positions.index_select(0, neighbor).sub_(positions.index_select(0, centre)).add_(shift)
        first = torch.cumsum(batch.n_atoms, 0) - batch.n_atoms
        return View(types, types[first][batch.frame], centre, neighbor, vectors, tables)

    def _gather(self, plan: RowPlan, view: View) -> Tensor:
        """(n, K, 3) Å: the pair vectors in the slots of one block of centre atoms, anything where a slot is empty.

        What is to be differentiated by them takes these, not the pairs: the derivative of a gather is slow.
        """
        vectors = view.vectors
        return vectors[plan.pairs] if len(vectors) else vectors.new_zeros(*plan.mask.shape, 3)

    def _evaluate(self, plan: RowPlan, view: View, vectors: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Atomic energies (n,) eV float64 and descriptors (n, D) of one block of centre atoms; vectors (n, K, 3)."""
        near = view.types[view.neighbor[plan.pairs]] if len(view.neighbor) else plan.pairs
        centre, first = view.types[plan.atoms], view.first_type[plan.atoms]
        rows = rows_of(vectors, plan.mask, centre, near, first, self._visible, self.config, self.dtype)
        return self.energies(rows, level if isinstance(level, int) else level[plan.atoms], view.tables)

    def _training_grid(self, view: View) -> Grid | None:
        """Splines that stand for the embedding net in one training step on a CPU."""
        if view.vectors.is_cuda or not len(view.centre):
            return None
        near = view.types[view.neighbor]
        # An empty slot has some neighbour's element, whatever its centre's.
        present = view.types.unique()
        centre_type = torch.cat([view.types[view.centre], present])
        neighbor_type = torch.cat([near, near[:1].expand_as(present)])
        closest = float(torch.linalg.vector_norm(view.vectors, dim=-1).min())
        return self.descriptor.training_grid(closest, present, centre_type, neighbor_type)

    @property
    def _visible(self) -> Tensor | None:
        return self._visible_pairs if self._hides_types else None

    def energies(self, rows: Rows, level: Level, tables: TableSet | None) -> tuple[Tensor, Tensor]:
        """Atomic energies (n,) eV float64 and descriptors (n, D) of rows at one level, or each at its own (n,)."""
        descriptor = self.descriptor(rows, tables)
        return self.energies_of(descriptor, rows.centre_type, level), descriptor

    def energies_of(self, descriptor: Tensor, centre_type: Tensor, level: Level) -> Tensor:
        """Atomic energies (n,) eV float64 from descriptors (n, D) of atoms of these elements (n,)."""
        energy = self._fit(descriptor.to(self.fitting.output.weight.dtype), level).double()
        energy = energy + self.energy_bias[level, centre_type]
        if self.config.exclude_elements:
            energy = torch.where(self._counted[centre_type], energy, 0.0)
        return energy

    def _fit(self, descriptor: Tensor, level: Level) -> Tensor:
        """(n,) what the fitting net of each atom's level makes of its descriptor."""
        if not self.level_fittings:
            return cast(Tensor, self.fitting(descriptor))
        heads = (self.fitting, *self.level_fittings)
        if isinstance(level, int):
            return cast(Tensor, heads[level](descriptor))
        energy = descriptor.new_zeros(len(descriptor))
        for index, head in enumerate(heads):
            chosen = torch.nonzero(level == index)[:, 0]
            if len(chosen):
                energy = energy.index_add(0, chosen, head(descriptor[chosen]))
        return energy

    def _whole(self, view: View, level: Level, derive: bool, keep_descriptor: bool) -> Pieces:
        """Atomic energies, their slope along every pair vector and descriptors, all differentiable."""
        vectors = view.vectors.requires_grad_(derive)
        atoms, energies, descriptors = [], [], []
        slots = CHUNK_SLOTS if vectors.device.type == "cpu" else 0
        for plan in plan_rows(view.centre, len(view.types), slots):
            energy, descriptor = self._evaluate(plan, view, self._gather(plan, view), level)
            atoms.append(plan.atoms)
            energies.append(energy)
            descriptors.append(descriptor if keep_descriptor else descriptor[:, :0])
        place = torch.argsort(torch.cat(atoms))
        atomic = torch.cat(energies)[place]
        slope = torch.zeros_like(vectors)
        if derive and len(vectors):
            with geometry_only():
                (slope,) = torch.autograd.grad(atomic.sum(), vectors, create_graph=True)
        return atomic, slope, torch.cat(descriptors)[place]

    def _in_chunks(self, view: View, level: Level, derive: bool, keep_descriptor: bool) -> Pieces:
        """The same without a graph, a bounded number of neighbour slots at a time."""
        atomic = view.vectors.new_zeros(len(view.types))
        slope = torch.zeros_like(view.vectors)
        kept = atomic.new_zeros(len(atomic), self.descriptor.width if keep_descriptor else 0, dtype=self.dtype)

        def evaluate(plan: RowPlan) -> None:
            filled = plan.mask
            vectors = self._gather(plan, view)
            with torch.set_grad_enabled(derive), geometry_only():
                energies, descriptor = self._evaluate(plan, view, vectors.requires_grad_(derive), level)
                if derive and len(view.centre):
                    (found,) = torch.autograd.grad(energies.sum(), vectors)
                    slope[plan.pairs[filled]] = found[filled]
            atomic[plan.atoms] = energies.detach()
            if keep_descriptor:
                kept[plan.atoms] = descriptor.detach()

        def evaluate_span(span: by_pairs.Span) -> None:
            assert lookup is not None
            atomic[span.atoms], found, descriptor = by_pairs.evaluate(self, view, level, lookup, span, derive)
            if derive:
                slope[span.pairs] = found
            if keep_descriptor:
                kept[span.atoms] = descriptor

        atoms, pairs = len(view.types), len(view.centre)
        slots = memory.block_slots(self.config, self.dtype, atoms, pairs, atomic.device, CHUNK_SLOTS)
        lookup = by_pairs.lookup_of(self, view)
        if lookup is None:
            plans = plan_rows(view.centre, atoms, slots)
            self._most_slots = memory.in_blocks(plans, evaluate, self._most_slots)
        else:
            spans = by_pairs.plan_spans(view.centre, atoms, slots)
            self._most_slots = memory.in_blocks(spans, evaluate_span, self._most_slots)
        return atomic, slope, kept
