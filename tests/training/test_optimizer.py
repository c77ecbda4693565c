"""Clipping, averaging and optimizer state."""

import pytest
import torch

from dpa1.config.training import OptimizerConfig, TrainingConfig
from dpa1.training.ema import Average
from dpa1.training.muon import orthogonalised
from dpa1.training.optimizer import (
    Clipper,
    gradient_length,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rate,
)


def clip(clipper, length):
    gradients = [torch.full((4,), length / 2, dtype=torch.float64)]
    clipper(gradients, gradient_length(gradients))
    return gradient_length(gradients).item()


def test_clip_norm():
    clipper = Clipper(TrainingConfig(clip_factor=None, clip_norm=2.0), torch.device("cpu"))
    assert clip(clipper, 1.5) == pytest.approx(1.5)
    assert clip(clipper, 100.0) == pytest.approx(2.0)


def test_clip_factor_follows_the_recent_lengths():
    clipper = Clipper(TrainingConfig(), torch.device("cpu"))
    assert clip(clipper, 50.0) == pytest.approx(50.0)  # nothing to compare with yet
    for _ in range(400):
        assert clip(clipper, 1.0) == pytest.approx(1.0)
    assert clip(clipper, 1e6) == pytest.approx(3.0, rel=0.02)
    assert clip(clipper, 0.1) == pytest.approx(0.1)


def test_no_clipping():
    clipper = Clipper(TrainingConfig(clip_factor=None), torch.device("cpu"))
    clip(clipper, 1.0)
    assert clip(clipper, 1e9) == pytest.approx(1e9)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_optimizer_matches_torch_and_its_state_survives(kind):
    def problem(fused):
        torch.manual_seed(0)
        w = torch.randn(5, requires_grad=True)
        if fused:
            return w, make_optimizer([w], OptimizerConfig(kind=kind))
        plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        return w, plain([w], lr=0.1, weight_decay=1e-3 if kind == "adamw" else 0.0, foreach=False)

    def steps(w, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            (w**4).sum().backward()
            set_learning_rate(optimizer, 0.1)
            optimizer.step()

    ours, reference = problem(True), problem(False)
    steps(*ours, 5)
    steps(*reference, 5)
    assert torch.allclose(ours[0], reference[0], rtol=1e-5)
    w, fresh = problem(True)
    w.data.copy_(ours[0].data)
    load_optimizer_state(fresh, {name: value.clone() for name, value in optimizer_state(ours[1]).items()})
    steps(*ours, 3)
    steps(w, fresh, 3)
    assert torch.equal(w, ours[0])


def test_muon_orthogonalises_matrices_and_its_state_survives():
    """A matrix moves along its orthogonalised gradient, a vector as Adam's; a restored optimizer goes on identically."""

    def problem():
        torch.manual_seed(0)
        weights = [torch.randn(6, 8, requires_grad=True), torch.randn(8, requires_grad=True)]
        return weights, make_optimizer(weights, OptimizerConfig(kind="muon"))

    def steps(weights, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            sum((w**4).sum() for w in weights).backward()
            set_learning_rate(optimizer, 0.1)
            optimizer.step()

    weights, optimizer = problem()
    before = [w.detach().clone() for w in weights]
    steps(weights, optimizer, 1)
    # The quintic iteration brings every singular value near one; its step has the size of Adam's.
    singular = torch.linalg.svdvals(before[0] - weights[0].detach()) / (0.1 * 0.2 * 8**0.5)
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3
    assert torch.allclose((before[1] - weights[1].detach()).abs(), torch.full((8,), 0.1), rtol=1e-3)
    restored, fresh = problem()
    for new, old in zip(restored, weights, strict=True):
        new.data.copy_(old.data)
    load_optimizer_state(fresh, {name: value.clone() for name, value in optimizer_state(optimizer).items()})
    steps(weights, optimizer, 3)
    steps(restored, fresh, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights, restored, strict=True))


def test_average():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = Average(model, 0.9)
    expected = 0.0
    for step in range(100):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    with average.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 100.0
    other = Average(model, 0.9)
    other.load(average.state())
    with other.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_muon_weight_decay_holds_matrices_and_their_biases_and_leaves_the_rest():
    matrix, vector = torch.full((6, 8), 2.0, requires_grad=True), torch.full((6,), 2.0, requires_grad=True)
    bias = torch.full((8,), 2.0, requires_grad=True)
    optimizer = make_optimizer([matrix, vector, bias], OptimizerConfig(weight_decay=0.5), [bias])
    optimizer.zero_grad()
    (0.0 * (matrix.sum() + vector.sum() + bias.sum())).backward()
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((6, 8), 2.0 * (1 - 0.1 * 0.5)))
    assert torch.allclose(bias, torch.full((8,), 2.0 * (1 - 0.1 * 0.5)))
    assert torch.equal(vector, torch.full((6,), 2.0))


def _moved(optimizer_of, threads):
    """By how much four steps moved some matrices."""
    torch.manual_seed(2)
    start = [torch.randn(shape) for shape in ((6, 30), (30, 30), (12, 5), (9, 10))]
    weights = [w.clone().requires_grad_() for w in start]
    optimizer, before = optimizer_of(weights), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in range(4):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            set_learning_rate(optimizer, 1e-2 / (1 + step))
            optimizer.step()
    finally:
        torch.set_num_threads(before)
    return [w.detach() - x for w, x in zip(weights, start, strict=True)]


def test_threads_share_the_matrices_and_change_nothing():
    def muon(weights):
        return make_optimizer(weights, OptimizerConfig(kind="muon", weight_decay=0.1))

    for a, b in zip(_moved(muon, 1), _moved(muon, 2), strict=True):
        assert torch.equal(a, b)


def test_muon_steps_as_that_of_torch_does_in_low_precision():
    ours = _moved(lambda w: make_optimizer(w, OptimizerConfig(kind="muon", weight_decay=0.1)), 1)
    theirs = _moved(lambda w: torch.optim.Muon(w, lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), 1)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()  # bfloat16 has three digits


@pytest.mark.parametrize("shape", [(5, 5), (4, 40), (40, 4), (7, 13), (13, 7), (30, 64)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
def test_orthogonalised_acts_on_singular_values_alone(shape, smallest):
    """Five times σ ← aσ + bσ³ + cσ⁵, of singular values spread down to ``smallest``."""
    torch.manual_seed(3)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    sigma = torch.logspace(0, torch.log10(torch.tensor(smallest)), min(shape), dtype=torch.float64)
    wanted = sigma / sigma.norm()
    for _ in range(5):
        wanted = 3.4445 * wanted - 4.7750 * wanted**3 + 2.0315 * wanted**5
    expected = (left * wanted) @ right
    for scale in (1e-3, 1.0, 1e5):
        given = scale * (left * sigma) @ right
        assert torch.allclose(orthogonalised(given), expected, atol=1e-9)
        assert torch.allclose(orthogonalised(given.float()).double(), expected, atol=1e-3)
    assert not torch.any(orthogonalised(torch.zeros(shape)))
