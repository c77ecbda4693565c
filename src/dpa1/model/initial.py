"""Initial values of a model of the smooth convention.

DeePMD-kit draws biases from N(0, 1) and small first-layer weights, so that at first every radial channel is nearly a
straight line and training spends long on a plateau. Here the radial input (of unit mean square) meets tanh steps spread
over its range, and the other biases start small. Measured on water and on germanium in docs/results/initial.md.
"""

from __future__ import annotations

import torch
from torch import nn

from dpa1.model.descriptor import Descriptor
from dpa1.model.networks import Dense

STEEPNESS = 1.0  # standard deviation of the first layer's radial weights
RANGE = 5.0  # the steps lie between 0 (the cutoff) and this many root mean squares (a bonded hydrogen in water)
BIAS = 0.1  # standard deviation of all other biases


@torch.no_grad()
def spread_radial_steps(descriptor: Descriptor, fitting: nn.Module) -> None:
    """Overwrite the first embedding layer's radial weights and all biases, drawing from torch's global generator."""
    for net in (descriptor, fitting):
        for module in net.modules():
            if isinstance(module, Dense) and module.bias is not None:
                module.bias.normal_(std=BIAS)
    first = descriptor.embedding.layers[0]
    assert isinstance(first, Dense)
    assert first.bias is not None
    first.weight[0].normal_(std=STEEPNESS)
    first.bias.copy_(-first.weight[0] * torch.empty_like(first.bias).uniform_(0.0, RANGE))
