"""Learning rates, against the formulas written out step by step."""

import math

import pytest

from dpa1.config.training import LossConfig, ScheduleConfig, TrainingConfig
from dpa1.errors import UserError
from dpa1.training.loss import Loss
from dpa1.training.schedule import Schedule


def schedule(steps: int = 1000, rate: float = 1e-2, **options: object) -> Schedule:
    options = {"kind": "exponential", "warmup_steps": 0, **options}
    options.setdefault("kind", "exponential")
    return Schedule(TrainingConfig(steps=steps, learning_rate=rate, schedule=ScheduleConfig(**options)))


def test_exponential_stairs_follow_deepmd():
    f = schedule(stop=1e-5, decay_steps=100)
    ratio = math.exp(math.log(1e-5 / 1e-2) / (1000 / 100))
    for step in (0, 1, 99, 100, 101, 555, 999):
        assert f(step) == pytest.approx(1e-2 * ratio ** (step // 100), rel=1e-14)


def test_exponential_smooth_and_given_rate():
    f = schedule(stop=1e-5, decay_steps=100, smooth=True)
    assert f(50) == pytest.approx(1e-2 * (1e-3) ** 0.05)
    assert f(1000) == pytest.approx(1e-5)
    g = schedule(stop=1e-4, decay_steps=10, decay_rate=0.5)
    assert g(25) == pytest.approx(1e-2 * 0.25)
    assert g(999) == 1e-4


def test_default_exponential_ends_at_stop():
    f = schedule()
    assert f(0) == 1e-2
    assert f(1000) == pytest.approx(1e-5)
    assert all(f(t + 1) < f(t) for t in range(1000))


def test_cosine():
    f = schedule(kind="cosine", stop=1e-4)
    assert f(0) == pytest.approx(1e-2)
    assert f(500) == pytest.approx((1e-2 + 1e-4) / 2)
    assert f(1000) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("form", "middle"),
    [
        ("linear", (1e-2 + 1e-4) / 2),
        ("cosine", (1e-2 + 1e-4) / 2),
        ("inverse_linear", 1 / (0.5 / 1e-4 + 0.5 / 1e-2)),
    ],
)
def test_warmup_stable_decay(form, middle):
    f = schedule(kind="wsd", stop=1e-4, decay_fraction=0.2, decay_form=form, warmup_steps=100)
    assert f(0) == 0.0
    assert f(50) == pytest.approx(0.5e-2)
    assert f(100) == f(700) == f(800) == 1e-2
    assert f(900) == pytest.approx(middle)
    assert f(1000) == pytest.approx(1e-4)


def test_warmup_start_and_default_length():
    f = schedule(warmup_steps=10, warmup_start=0.2)
    assert f(0) == pytest.approx(0.2e-2)
    assert f(5) == pytest.approx(0.6e-2)
    assert Schedule(TrainingConfig(steps=500)).warmup == 10
    assert Schedule(TrainingConfig(steps=10**6)).warmup == 1000


def test_prefactors_ramp_with_the_learning_rate():
    f = schedule(warmup_steps=10)
    loss = Loss(LossConfig(energy=(0.02, 1), force=(1000, 1)))
    for step in (10, 200, 999):
        ratio = f(step) / 1e-2
        assert loss.prefactor("force", f.ramp(step, False)) == pytest.approx(1 + 999 * ratio)
        assert loss.prefactor("energy", f.ramp(step, False)) == pytest.approx(1 - 0.98 * ratio)
    assert f.ramp(5, False) == 1.0
    assert f.ramp(5, True) == 0.5


def test_impossible_schedules_are_refused():
    with pytest.raises(UserError, match="warmup_steps"):
        schedule(steps=10, warmup_steps=10)
    with pytest.raises(UserError, match="larger than learning_rate"):
        schedule(stop=1.0)
