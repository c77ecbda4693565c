"""Forces and virial are the finite differences of the energy, the error falling with the fourth power of the step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts.systems import example_options, option_sets, predict, random_frame, random_potential

STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
PBC = st.sampled_from([True, False, (True, True, False)])


def difference(energy, step):
    """Fourth-order central difference of a scalar function at 0."""
    return sum(weight * energy(k * step) for k, weight in STENCIL) / step


@settings(max_examples=40, deadline=None)
@given(option_sets("smooth"), PBC, st.integers(0, 99))
def test_forces(options, pbc, seed):
    potential, frame = random_potential(options, seed), random_frame(seed, pbc=pbc)
    direction = np.random.default_rng(seed).normal(size=frame.positions.shape)
    exact = -(predict(potential, frame)["forces"] * direction).sum()

    def energy(h):
        return predict(potential, frame.replace(positions=frame.positions + h * direction))["energy"][0]

    # The switch is twice differentiable: a pair crossing its ends within the stencil costs O(h²), hence the small step.
    assert abs(difference(energy, 2e-4) - exact) < 1e-7 * max(abs(exact), 1.0)


def test_error_falls_with_the_fourth_power():
    """A smaller step makes the difference 4⁴ = 256 times better (no pair of this frame crosses an end of the switch)."""
    potential, frame = random_potential(example_options(), 1), random_frame(11, atoms=4, pbc=False, edge=2.5)
    direction = np.random.default_rng(1).normal(size=frame.positions.shape)
    exact = -(predict(potential, frame)["forces"] * direction).sum()

    def energy(h):
        return predict(potential, frame.replace(positions=frame.positions + h * direction))["energy"][0]

    coarse, fine = (abs(difference(energy, step) - exact) for step in (6e-3, 1.5e-3))
    assert 150 < coarse / fine < 400


@settings(max_examples=40, deadline=None)
@given(option_sets("smooth"), PBC, st.integers(0, 99))
def test_virial(options, pbc, seed):
    potential, frame = random_potential(options, seed), random_frame(seed, pbc=pbc)
    strain = np.random.default_rng(seed).normal(size=(3, 3))
    exact = -(predict(potential, frame)["virial"][0] * strain).sum()

    def energy(h):
        deform = np.eye(3) + h * strain
        stretched = frame.replace(positions=frame.positions @ deform, cell=frame.cell @ deform)
        return predict(potential, stretched)["energy"][0]

    # E(r·(1+hε)) changes by h·Σ ε_ab ∂E/∂ε_ab with positions as rows: r_b → r_b + h·r_a·ε_ab.
    assert abs(difference(energy, 1e-4) - exact) < 1e-6 * max(abs(exact), 1.0)


def test_virial_of_a_frame_under_pressure_is_positive():
    """A stretched spring pulls in, a compressed one pushes out: W = −∂E/∂ε is positive when the cell wants to expand."""
    potential = random_potential(example_options())
    frame = random_frame(5)
    volume_slope = np.trace(predict(potential, frame)["virial"][0])
    smaller, larger = (
        predict(potential, frame.replace(positions=frame.positions * s, cell=frame.cell * s))["energy"][0]
        for s in (1 - 1e-4, 1 + 1e-4)
    )
    assert np.sign(volume_slope) == np.sign(smaller - larger)
