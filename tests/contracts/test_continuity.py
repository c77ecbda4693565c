"""Energy, forces and the forces' first derivatives stay continuous as a neighbour crosses the cutoff."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.frames import make_frame
from tests.contracts.systems import CUTOFF, NUMBERS, example_options, option_sets, predict, random_potential


def crowd(seed, atoms, distance):
    """A cluster and one more atom exactly ``distance`` from its first atom (and nearer or farther from the others)."""
    rng = np.random.default_rng(seed)
    positions = [np.zeros(3)]
    while len(positions) < atoms:
        trial = rng.normal(size=3) * 0.5 * atoms ** (1 / 3)
        if min(np.linalg.norm(trial - p) for p in positions) > 0.7:
            positions.append(trial)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    numbers = rng.choice(NUMBERS, atoms + 1)
    return make_frame(numbers, np.vstack([*positions, axis * distance]), pbc=False)


def scan(potential, seed, atoms, distances):
    energies, forces = [], []
    for distance in distances:
        out = predict(potential, crowd(seed, atoms, distance))
        energies.append(out["energy"][0])
        forces.append(out["forces"])
    return np.array(energies), np.array(forces)


def jumps(potential, seed, atoms, h=1e-4):
    """Differences of E, F and dF/dx between just inside and just outside, beyond what a smooth function would show."""
    inside = CUTOFF - h * np.arange(3, 0, -1)
    outside = CUTOFF + h * np.arange(1, 4)
    (e_in, f_in), (e_out, f_out) = (scan(potential, seed, atoms, d) for d in (inside, outside))
    # Quadratic extrapolation of each side to the cutoff: exact to O(h³) for a smooth side.
    at = [3 * e_in[2] - 3 * e_in[1] + e_in[0], 3 * e_out[0] - 3 * e_out[1] + e_out[2]]
    force = [3 * f_in[2] - 3 * f_in[1] + f_in[0], 3 * f_out[0] - 3 * f_out[1] + f_out[2]]
    slope = [(2.5 * f_in[2] - 4 * f_in[1] + 1.5 * f_in[0]) / h, (-2.5 * f_out[0] + 4 * f_out[1] - 1.5 * f_out[2]) / h]
    return abs(at[0] - at[1]), np.abs(force[0] - force[1]).max(), np.abs(slope[0] - slope[1]).max()


@settings(max_examples=40, deadline=None)
@given(option_sets("smooth"), st.integers(0, 99), st.sampled_from([1, 2, 12, 40]))
def test_smooth_convention_is_continuous(options, seed, atoms):
    potential = random_potential(options, seed)
    wide = jumps(potential, seed, atoms)
    narrow = jumps(potential, seed, atoms, h=2e-5)
    # A steep but smooth function leaves an extrapolation error that shrinks with h; a jump stays what it is.
    for bound, far, near in zip((1e-9, 1e-8, 2e-3), wide, narrow, strict=True):
        assert far < bound or near < far / 10


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_deepmd_non_smooth_jumps(layers):
    """The same scan sees the discontinuity of DeePMD-kit's default, so the test above can fail."""
    options = example_options(
        convention="deepmd", smooth_attention=False, sel=60, mean_neighbors=None, attention_layers=layers
    )
    energy, force, _ = jumps(random_potential(options, 1), 1, 12)
    assert energy > 1e-7
    assert force > 1e-6
