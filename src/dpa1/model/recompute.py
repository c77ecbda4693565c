"""The gradient of a training step without keeping the whole graph: each block of atoms is evaluated a second time.

A loss L depends on the weights through energies E, forces F and virials W only. With their cotangents known from an
evaluation without a graph, the gradient of L is that of

    Φ = Σ_f Ē_f E_f + Σ_i F̄_i·F_i + Σ_f W̄_f:W_f = Σ_f Ē_f E_f + Σ_p a_p·s_p,    a_p = F̄_i − F̄_j − W̄ v_p,

with s_p = ∂E/∂v_p the slope along pair p = (i, j). Since the model is local, Φ is a sum over atoms, and each block of
them can be differentiated and forgotten before the next: exact, and the peak is that of one block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.kernels.wanted import geometry_only, parameters_only
from dpa1.model import memory
from dpa1.model.potential import CHUNK_SLOTS, Potential
from dpa1.model.rows import RowPlan, plan_rows


def backpropagate(
    potential: Potential,
    batch: Batch,
    energy: Tensor | None,
    forces: Tensor | None,
    virial: Tensor | None,
    level: str | None = None,
) -> None:
    """Add the gradient of Φ to ``grad`` of the potential's parameters.

    energy (F,), forces (N, 3), virial (F, 3, 3): cotangents in 1/eV, Å/eV, 1/eV; None for what the loss leaves out.

    Raises
    ------
    RunError
        when a single atom does not fit into memory.
    """
    index = potential.levels_of(batch, level)
    view = potential._view(batch)
    vectors, frame = view.vectors, batch.frame
    along: Tensor | None = None
    if forces is not None:
        along = forces.index_select(0, view.centre) - forces.index_select(0, view.neighbor)
    if virial is not None:
        turned = torch.einsum("pab,pb->pa", virial[frame[view.centre]], vectors)
        along = -turned if along is None else along - turned
    weights = [p for p in potential.parameters() if p.requires_grad]

    def work(plan: RowPlan) -> None:
        chosen = plan.pairs[plan.mask]
        local = torch.zeros_like(plan.pairs)
        local[plan.mask] = torch.arange(len(chosen), device=chosen.device)
        block = RowPlan(plan.atoms, local, plan.mask)
        derive = along is not None and len(chosen) > 0
        with torch.enable_grad():
            piece = vectors[chosen].requires_grad_(derive)
            energies, _ = potential._evaluate(block, view, piece, view.neighbor[chosen], index)
            phi = energies.new_zeros(())
            if energy is not None:
                phi = phi + (energies * energy[frame[plan.atoms]]).sum()
            if derive:
                assert along is not None
                with geometry_only():
                    (slope,) = torch.autograd.grad(energies.sum(), piece, create_graph=True)
                phi = phi + (slope * along[chosen]).sum()
            if phi.requires_grad:
                with parameters_only():
                    gradients = torch.autograd.grad(phi, weights, allow_unused=True)
                # Only now, so that a block for which memory did not suffice has left nothing behind.
                for weight, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    pairs = len(view.centre)
    slots = memory.block_slots(potential.config, potential.dtype, len(view.types), pairs, vectors.device, CHUNK_SLOTS)
    # A graph of second derivatives keeps about three times what a first one does.
    plans = plan_rows(view.centre, len(view.types), max(1, slots // 3) if vectors.is_cuda else slots)
    memory.in_blocks(plans, work)
