"""Find the frame behind a loss or gradient that is not finite, write it out, and say so."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dpa1.batch import Batch, make_batch
from dpa1.errors import RunError
from dpa1.frames import Frame, to_ase
from dpa1.training.step import Step


def explain(step: Step, frames: list[Frame], ramp: float, folder: Path, number: int) -> str | None:
    """The sentence about the first of ``frames`` that is to blame (written to ``folder`` as extended XYZ), or ``None``."""
    for parameter, name in zip(step.parameters, _names(step), strict=True):
        if not torch.isfinite(parameter).all():
            return f"step {number}: the weights {name} are not finite; lower training.learning_rate"
    for frame in frames:
        batch = make_batch([frame], step.potential.cutoff, levels=step.potential.levels).to(step.world.device)
        quantity = _broken(step, batch, ramp)
        if quantity is not None:
            path = _write(frame, folder / f"bad-frame-step-{number}.xyz")
            return f"step {number}: {quantity} of {frame.name} is not finite; the frame was written to {path}"
    return None


def stop(step: Step, frames: list[Frame], ramp: float, folder: Path, number: int, checkpoint: Path | None) -> RunError:
    """The error to raise, the same in every process."""
    sentence = explain(step, frames, ramp, folder, number)
    if step.world.size > 1:
        sentences: list[str | None] = [None] * step.world.size
        torch.distributed.all_gather_object(sentences, sentence)
        sentence = next((s for s in sentences if s is not None), None)
    if sentence is None:
        sentence = (
            f"step {number}: the gradient of the batch is not finite though that of each frame is; "
            "lower training.learning_rate"
        )
    kept = f" The last good checkpoint is {checkpoint}." if checkpoint else ""
    return RunError(f"{sentence}.{kept}")


def _broken(step: Step, batch: Batch, ramp: float) -> str | None:
    for name in ("energy", "forces", "virial"):
        label: Tensor = getattr(batch, name)
        # All NaN is an absent label, a few of them a broken one.
        if label.isinf().any() or (label.isnan().any() and not label.isnan().all()):
            return f"the label '{name}'"
    prediction = step.potential.predict(batch, forces=step.loss.forces, virial=step.loss.virial)
    for name, value in prediction.items():
        if not torch.isfinite(value).all():
            return f"the predicted {name}"
    step.optimizer.zero_grad(set_to_none=True)
    loss = step.losses(batch, ramp).sum()
    if not torch.isfinite(loss):
        return "the loss"
    loss.backward()
    for parameter, name in zip(step.parameters, _names(step), strict=True):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return None


def _names(step: Step) -> list[str]:
    return [name for name, parameter in step.potential.named_parameters() if parameter.requires_grad]


def _write(frame: Frame, path: Path) -> Path:
    from ase.io import write

    # A label that is not finite is what the file is for, so it is written as it is.
    write(path, to_ase(frame), format="extxyz")
    return path
