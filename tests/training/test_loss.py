"""Loss terms against their definition, and missing labels."""

import numpy as np
import pytest
import torch

from dpa1.batch import make_batch
from dpa1.config.training import LossConfig
from dpa1.frames import make_frame
from dpa1.training.loss import Loss


def frames(rng, sizes=(3, 5), **drop):
    out = []
    for k, n in enumerate(sizes):
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3)), "virial": rng.normal(size=(3, 3))}
        for key in drop.get(f"drop{k}", ()):
            labels.pop(key)
        out.append(make_frame([1] * n, rng.normal(size=(n, 3)) * 5, np.eye(3) * 30, **labels))
    return out


def prediction(rng, batch):
    def t(*shape):
        return torch.tensor(rng.normal(size=shape), requires_grad=True)

    return {"energy": t(len(batch)), "forces": t(len(batch.numbers), 3), "virial": t(len(batch), 3, 3)}


def huber(x, delta):
    return np.where(np.abs(x) <= delta, x**2 / 2, delta * (np.abs(x) - delta / 2))


TERM = {
    "mse": (lambda d, n: d**2 / n, lambda d: d**2),
    "mae": (lambda d, n: np.abs(d) / n, np.abs),
    "huber": (lambda d, n: huber(d / n, 0.3), lambda d: huber(d, 0.3)),
}


@pytest.mark.parametrize("kind", TERM)
def test_terms(kind):
    rng = np.random.default_rng(0)
    data = [f.replace(weight=w) for f, w in zip(frames(rng), (1.0, 2.5), strict=True)]
    batch = make_batch(data, 3.0)
    out = prediction(rng, batch)
    config = LossConfig(kind=kind, energy=(3, 1), force=(10, 1), virial=(2, 1), huber_delta=0.3)
    result = Loss(config)(batch, out, ramp=1.0).detach().numpy()
    extensive, pointwise = TERM[kind]
    first = 0
    for k, frame in enumerate(data):
        n = len(frame)
        d_e = out["energy"][k].item() - frame.energy
        d_f = out["forces"][first : first + n].detach().numpy() - frame.forces
        d_w = out["virial"][k].detach().numpy() - frame.virial
        expected = 3 * extensive(d_e, n) + 10 * pointwise(d_f).mean() + 2 * extensive(d_w, n).mean()
        assert result[k] == pytest.approx(frame.weight * expected, rel=1e-13)
        first += n


def test_intensive_and_force_norm():
    rng = np.random.default_rng(1)
    data = frames(rng)
    batch = make_batch(data, 3.0)
    out = prediction(rng, batch)
    per_frame = Loss(LossConfig(energy=1, force=0, intensive=True))(batch, out, 0.0).detach().numpy()
    assert per_frame == pytest.approx(
        [((out["energy"][k].item() - f.energy) / len(f)) ** 2 for k, f in enumerate(data)]
    )
    norms = Loss(LossConfig(energy=0, force=1, kind="mae", force_norm=True))(batch, out, 0.0).detach().numpy()
    difference = np.linalg.norm(out["forces"].detach().numpy() - batch.forces.numpy(), axis=1)
    assert norms == pytest.approx([difference[:3].mean(), difference[3:].mean()])


def test_missing_labels_reach_neither_value_nor_gradient():
    rng = np.random.default_rng(2)
    data = frames(rng, drop0=("energy", "virial"), drop1=("forces",))
    batch = make_batch(data, 3.0)
    out = prediction(rng, batch)
    loss = Loss(LossConfig(virial=1))(batch, out, ramp=0.5)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for key, missing in (("energy", [0]), ("virial", [0]), ("forces", [3, 4, 5, 6, 7])):
        gradient = out[key].grad
        assert torch.isfinite(gradient).all()
        assert (gradient[missing] == 0).all()
        assert gradient.abs().sum() > 0


def test_a_partly_broken_label_is_not_a_missing_one():
    rng = np.random.default_rng(3)
    batch = make_batch(frames(rng), 3.0)
    batch.forces[1, 2] = float("nan")
    out = prediction(rng, batch)
    loss = Loss(LossConfig())(batch, out, ramp=0.5)
    assert loss[0].isnan()
    assert loss[1].isfinite()


def test_exact_forces_with_force_norm_have_a_finite_gradient():
    rng = np.random.default_rng(4)
    batch = make_batch(frames(rng), 3.0)
    out = prediction(rng, batch)
    out["forces"] = batch.forces.clone().requires_grad_()
    Loss(LossConfig(energy=0, force=1, kind="mae", force_norm=True))(batch, out, 0.0).sum().backward()
    assert (out["forces"].grad == 0).all()
