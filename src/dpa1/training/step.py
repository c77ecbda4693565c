"""One optimizer step over the batches of every process: the gradient is that of the union of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpa1.batch import Batch
from dpa1.model import memory
from dpa1.model.blockwise import Blockwise
from dpa1.model.metrics import frame_sums
from dpa1.model.potential import Potential
from dpa1.model.threads import threads_for_blocks
from dpa1.training.bias import Pins
from dpa1.training.distributed import World
from dpa1.training.loss import Loss
from dpa1.training.optimizer import Clipper, Optimizer, gradient_length, set_learning_rate

LABELS = ("energy", "forces", "virial")


@dataclass(frozen=True)
class Outcome:
    """What a step found: mean loss per frame, gradient length before clipping, whether some process wants to stop."""

    loss: float
    gradient: float
    stop: bool

    @property
    def finite(self) -> bool:
        return abs(self.loss) < float("inf") and self.gradient < float("inf")


class Step:
    """Forward, backward, sum over processes, clip, update.

    The gradient is the sum over all frames of all processes divided by their number, so W processes with one batch
    each do exactly what one process does with the W batches at once. When loss or gradient is not finite nothing is
    updated.
    """

    def __init__(
        self,
        potential: Potential,
        loss: Loss,
        optimizer: Optimizer,
        clipper: Clipper,
        world: World,
        pins: Pins | None,
        recompute: bool = False,
    ) -> None:
        """``recompute``: keep no graph of the whole batch but evaluate it twice, the second time block by block."""
        self.potential, self.loss, self.optimizer, self.clipper = potential, loss, optimizer, clipper
        self.world, self.pins, self.recompute = world, pins, recompute
        self.parameters = [p for p in potential.parameters() if p.requires_grad]
        self.sums = torch.zeros(4, 3, dtype=torch.float64, device=world.device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # frames, Σ loss

    def __call__(self, batches: Sequence[Batch], rate: float, ramp: float, stop: bool = False) -> Outcome:
        """Update the weights from this process's ``batches`` with learning rate ``rate``."""
        with threads_for_blocks(sum(len(batch.centre) for batch in batches)):
            return self._update(batches, rate, ramp, stop)

    def _update(self, batches: Sequence[Batch], rate: float, ramp: float, stop: bool) -> Outcome:
        self.optimizer.zero_grad(set_to_none=True)
        frames = sum(len(batch) for batch in batches)
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for batch in batches:
            what = f"{len(batch.numbers)} atoms with {len(batch.centre)} pairs of neighbors in one training step"
            remedy = "lower training.batch_atoms" + ("" if self.recompute else ", or set training.recompute: true")
            with memory.enough(what, remedy, self.world.device):
                total += self.backward(batch, ramp)
        gradients = self._gradients()
        if self.world.size > 1:
            frames, total, stop = self._union(gradients, frames, total, stop)
        if frames > 1:
            torch._foreach_div_(gradients, float(frames))
        length = gradient_length(gradients)
        # The one moment of a step at which the host waits for the device: nothing unsound ever reaches the weights.
        value, size = torch.stack([total, length]).tolist()
        outcome = Outcome(value / frames, size, stop)
        if outcome.finite:
            self.clipper(gradients, length)
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self.totals += torch.stack([torch.full_like(total, frames), total])
        return outcome

    def backward(self, batch: Batch, ramp: float) -> Tensor:
        """Add the gradient of the summed losses of one batch to the parameters' and return that sum."""
        energy = self.pins.apply(self.potential, batch) if self.pins else None
        work = Blockwise(self.potential, batch, forces=self.loss.forces, virial=self.loss.virial, again=self.recompute)
        leaves = {name: work.prediction[name].requires_grad_() for name in LABELS if name in work.prediction}
        value = self._compare(batch, dict(leaves), energy, ramp).sum()
        value.backward()
        work.backward(*(leaves[name].grad if name in leaves else None for name in LABELS))
        return value.detach()

    def losses(self, batch: Batch, ramp: float) -> Tensor:
        """(F,) differentiable losses of one batch as autograd sees them; adds its errors to the running sums."""
        energy = self.pins.apply(self.potential, batch) if self.pins else None
        prediction = self.potential.predict(batch, create_graph=True, forces=self.loss.forces, virial=self.loss.virial)
        return self._compare(batch, prediction, energy, ramp)

    def _compare(self, batch: Batch, prediction: dict[str, Tensor], energy: Tensor | None, ramp: float) -> Tensor:
        if energy is not None:
            prediction["energy"] = prediction["energy"] + energy
        self.sums += frame_sums(batch, prediction).sum(0)
        return self.loss(batch, prediction, ramp)

    def take_sums(self) -> tuple[Tensor, Tensor]:
        """Error sums (4, 3) over all processes and (frames, Σ loss) since the last call."""
        sums, totals = self.world.add(self.sums.clone()), self.totals.clone()
        self.sums.zero_()
        self.totals.zero_()
        return sums, totals

    def _gradients(self) -> list[Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters if p.grad is not None]

    def _union(self, gradients: list[Tensor], frames: int, total: Tensor, stop: bool) -> tuple[int, Tensor, bool]:
        """Sum gradients, frames, loss and the wish to stop over all processes in one flat reduction."""
        extra = torch.stack([torch.full_like(total, frames), total, torch.full_like(total, float(stop))])
        flat = torch.cat([*(g.reshape(-1).double() for g in gradients), extra])
        self.world.add(flat)
        start = 0
        for gradient in gradients:
            end = start + gradient.numel()
            gradient.copy_(flat[start:end].view_as(gradient))
            start = end
        return int(flat[-3]), flat[-2], bool(flat[-1] > 0)
