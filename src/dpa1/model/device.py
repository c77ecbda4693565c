"""Where tensors live: the one place that turns a device's name into a device."""

from __future__ import annotations

import torch

from dpa1.errors import UserError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; without a name the first GPU, or the CPU where there is none.

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
        raise UserError(f"device: unknown name '{name}'; use cpu, cuda, or cuda:<number>") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"device: '{name}' cannot compute in float64, which the energies need; use cpu or cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        found = f"torch sees {count} GPU{'' if count == 1 else 's'} here" if count else "torch sees no GPU here"
        raise UserError(f"device: '{name}' is not available ({found}); use cpu" + (" or cuda:0" if count else ""))
    return device
