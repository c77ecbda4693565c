"""The gradient of a training step, block by block.

A loss L depends on the weights through energies E, forces F and virials W only. With their cotangents known, the
gradient of L is that of

    Φ = Σ_f Ē_f E_f + Σ_i F̄_i·F_i + Σ_f W̄_f:W_f = Σ_f Ē_f E_f + Σ_p a_p·s_p,    a_p = F̄_i − F̄_j − W̄ v_p,

with s_p = ∂E/∂v_p the slope along pair p = (i, j). Since the model is local, Φ is a sum over atoms, and each block of
them is differentiated by itself: on a thread of its own, and from a graph that is kept or, to save memory, built again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.kernels.nodes import Grid
from dpa1.kernels.wanted import geometry_only, parameters_only, training_step
from dpa1.model import memory
from dpa1.model.potential import CHUNK_SLOTS, Level, Pieces, Potential, View
from dpa1.model.rows import RowPlan, plan_rows
from dpa1.model.threads import spread


class Splines:
    """What stands for the embedding net in every block of a step; it is differentiated once, after all of them."""

    def __init__(self, grid: Grid) -> None:
        self.origin = grid.table
        self.leaf = grid.table.detach().requires_grad_(grid.table.requires_grad)
        self.grid = replace(grid, table=self.leaf)

    def gradients(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Those of the weights behind it, from what the blocks have left in the leaf."""
        with parameters_only():
            return torch.autograd.grad(self.origin, weights, self.leaf.grad, allow_unused=True)


@dataclass(frozen=True)
class Block:
    """Which atoms, atomic energies (n,) and slopes (n, K, 3), both differentiable."""

    plan: RowPlan
    energies: Tensor
    slope: Tensor | None


class Blockwise:
    """One batch evaluated for training: first ``prediction``, then ``backward`` with what the loss makes of it.

    Parameters
    ----------
    forces, virial: whether the loss asks for them.
    again: keep no graph but evaluate each block a second time; the peak is then that of a few blocks.

    Raises
    ------
    RunError
        with ``again``, when a single atom does not fit into memory.
    """

    def __init__(
        self, potential: Potential, batch: Batch, *, forces: bool = True, virial: bool = True, again: bool = False
    ) -> None:
        self.potential, self.batch = potential, batch
        self.index: Level = potential.levels_of(batch)
        self.weights = [p for p in potential.parameters() if p.requires_grad]
        self.kept: list[Block] = []
        self.splines: Splines | None = None  # one set for all blocks
        self.view: View | None = None
        self.prediction: dict[str, Tensor]  # energy (F,), forces (N, 3), virial (F, 3, 3), without a graph
        if again:
            self.prediction = potential.predict(batch, forces=forces, virial=virial)
        else:
            self.prediction = potential._predict(batch, self.index, forces, virial, False, self._keep)

    def backward(self, energy: Tensor | None, forces: Tensor | None, virial: Tensor | None) -> None:
        """Add the gradient of Φ to ``grad`` of the potential's parameters; only once.

        energy (F,), forces (N, 3), virial (F, 3, 3): cotangents in 1/eV, Å/eV, 1/eV; None for what the loss leaves out.
        """
        view, frame = self.view or self.potential._view(self.batch), self.batch.frame
        along: Tensor | None = None
        if forces is not None:
            along = forces.index_select(0, view.centre) - forces.index_select(0, view.neighbor)
        if virial is not None:
            turned = torch.einsum("pab,pb->pa", virial[frame[view.centre]], view.vectors)
            along = -turned if along is None else along - turned

        def gradients(block: Block) -> Sequence[Tensor | None]:
            phi = block.energies.new_zeros(())
            with torch.enable_grad():
                if energy is not None:
                    phi = phi + (block.energies * energy[frame[block.plan.atoms]]).sum()
                if along is not None and block.slope is not None:
                    # An empty slot's slope is zero, whatever stands in its place.
                    phi = phi + (block.slope * along[block.plan.pairs]).sum()
            if not phi.requires_grad:
                return []
            with parameters_only():
                return torch.autograd.grad(phi, self._leaves(), allow_unused=True)

        def add(found: Sequence[Tensor | None]) -> None:
            for leaf, gradient in zip(self._leaves(), found, strict=False):
                if gradient is not None:
                    leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)

        def add_splines() -> None:
            if self.splines is not None and self.splines.leaf.grad is not None:
                add(self.splines.gradients(self.weights))

        if self.kept:
            # Each graph goes as soon as it has served.
            self.kept.reverse()
            blocks = (self.kept.pop() for _ in range(len(self.kept)))
            spread(blocks, gradients, add, parallel=not view.vectors.is_cuda)
            add_splines()
            return
        derive = along is not None
        most = self._slots(view)
        # A graph of second derivatives keeps about three times what a first one does.
        plans = plan_rows(view.centre, len(view.types), max(1, most // 3) if view.vectors.is_cuda else most)
        self._make_splines(view, derive)
        memory.in_blocks(plans, lambda plan: gradients(self._block(view, plan, derive)), take=add)
        add_splines()

    def _leaves(self) -> list[Tensor]:
        # The embedding net may be frozen.
        more = [self.splines.leaf] if self.splines is not None and self.splines.leaf.requires_grad else []
        return [*self.weights, *more]

    def _make_splines(self, view: View, derive: bool) -> None:
        with torch.enable_grad():
            grid = self.potential._training_grid(view) if derive else None
        self.splines = None if grid is None else Splines(grid)

    def _block(self, view: View, plan: RowPlan, derive: bool) -> Block:
        derive = derive and len(view.centre) > 0
        slope: Tensor | None = None
        with torch.enable_grad():
            vectors = self.potential._gather(plan, view).requires_grad_(derive)
            with training_step(None if self.splines is None else self.splines.grid):
                energies, _ = self.potential._evaluate(plan, view, vectors, self.index)
            if derive:
                with geometry_only():
                    (slope,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        return Block(plan, energies, slope)

    def _keep(self, view: View, _: Level, derive: bool, __: bool) -> Pieces:
        """The pieces of a prediction; the graphs behind them stay in ``kept``."""
        self.view = view
        self._make_splines(view, derive)
        atoms, on_gpu = len(view.types), view.vectors.is_cuda
        slots = 0 if on_gpu else self._slots(view)
        atomic, slope = view.vectors.new_zeros(atoms), torch.zeros_like(view.vectors)
        plans = plan_rows(view.centre, atoms, slots)

        def evaluate(plan: RowPlan) -> Block:
            block = self._block(view, plan, derive)
            atomic[plan.atoms] = block.energies.detach()
            if block.slope is not None:
                slope[plan.pairs[plan.mask]] = block.slope.detach()[plan.mask]
            return block

        spread(plans, evaluate, self.kept.append, parallel=not on_gpu)
        return atomic, slope, atomic.new_zeros(atoms, 0)

    def _slots(self, view: View) -> int:
        potential, pairs, atoms = self.potential, len(view.centre), len(view.types)
        return memory.block_slots(potential.config, potential.dtype, atoms, pairs, view.vectors.device, CHUNK_SLOTS)
