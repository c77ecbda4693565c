"""Tensors as the arrays that compiled loops take."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """The numbers without gaps, so that each function is compiled once per precision; to be read only."""
    found: np.ndarray = tensor.detach().contiguous().numpy()
    return found


def memory(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor without gaps, to be written to."""
    assert tensor.is_contiguous()
    found: np.ndarray = tensor.detach().numpy()
    return found
