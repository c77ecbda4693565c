"""What stands between a potential and its use: device, precision, and whether it knows the elements."""

from __future__ import annotations

import copy

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from dpa1.errors import UserError
from dpa1.frames import Frame
from dpa1.kernels import openblas
from dpa1.model.potential import DTYPES, Potential


def pick_device(name: str | torch.device | None = None, key: str = "device") -> torch.device:
    """The named device; without a name the first GPU, or the CPU where there is none. ``key``: what messages call it.

    Raises
    ------
    UserError
        for a name torch does not know, a device this machine lacks, or one without float64.
    """
    if name is None or str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key}: unknown name '{name}'; use cpu, cuda, or cuda:<number>") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"{key}: '{name}' cannot compute in float64, which the energies need; use cpu or cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        found = f"torch sees {count} GPU{'' if count == 1 else 's'} here" if count else "torch sees no GPU here"
        raise UserError(f"{key}: '{name}' is not available ({found}); use cpu" + (" or cuda:0" if count else ""))
    return device


@torch.inference_mode(False)
def frozen_copy(potential: Potential, dtype: str | None, device: torch.device) -> Potential:
    """A copy for inference: parameters without gradients, in the given precision (its own for None), on ``device``."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: unknown precision '{dtype}'; use {' or '.join(DTYPES)}")
    frozen = copy.deepcopy(potential).eval().requires_grad_(False)
    if dtype is not None:
        frozen.set_precision(dtype)
    if device.type == "cpu":
        openblas.reserve()
    return frozen.to(device)


def check_elements(frame: Frame, potential: Potential) -> None:
    """Raise a ``UserError`` that names the frame when the potential has never seen one of its elements."""
    check_numbers(frame.numbers, potential, f"{frame.name}: ")


def check_numbers(numbers: np.ndarray, potential: Potential, where: str = "") -> None:
    """The same for (N,) atomic numbers. An element with a place in the table but not in the training data is unseen."""
    known = {atomic_numbers[symbol] for symbol in potential.trained_elements}
    unknown = sorted(set(numbers.tolist()) - known)
    if unknown:
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        raise UserError(f"{where}the model does not know {symbols}; it knows {', '.join(potential.trained_elements)}")
