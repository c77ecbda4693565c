"""Which derivatives are wanted holds where autograd works: in the thread that asks, on any device."""

import torch

from dpa1.kernels.wanted import geometry_only, geometry_wanted, parameters_only, parameters_wanted


def test_backward_runs_in_the_thread_that_knows():
    seen = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, bar):
            # What lies on a GPU is differentiated in other threads while this is on.
            seen.append((geometry_wanted(), parameters_wanted(), torch._C._is_multithreading_enabled()))
            return bar

    x = torch.ones(2, requires_grad=True)
    for context in (geometry_only, parameters_only):
        with context():
            torch.autograd.grad(Probe.apply(x).sum(), x)
    torch.autograd.grad(Probe.apply(x).sum(), x)
    assert seen == [(True, False, False), (False, True, False), (True, True, True)]
