"""Limits on energies: what is left out is what is wrong, with its distance from the fit to all others."""

import numpy as np
import pytest

from dpa1.data.dataset import ListDataset
from dpa1.data.outliers import drop_outliers
from dpa1.frames import make_frame

ENERGY = {8: -5.0, 12: -2.0, 20: -2.2, 22: -8.0, 26: -7.5, 27: -7.0, 56: -1.9}  # eV per atom


def oxides(seed=0, frames=30):
    """Perovskite cells ABO3 of ten atoms with two kinds of B, cobalt in the last two alone; 0.1 eV/atom of noise."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(frames):
        a = rng.choice([12, 20, 56], 2)
        b = [27, rng.choice([22, 26])] if k >= frames - 2 else rng.choice([22, 26], 2)
        numbers = [*a, *b, *[8] * 6]
        energy = sum(ENERGY[int(z)] for z in numbers) + 10 * rng.normal(0, 0.1)
        positions = rng.uniform(0, 9, (10, 3))
        found.append(make_frame(numbers, positions, energy=energy, source="oxides", index=k))
    return found


@pytest.mark.parametrize("bad", [0, 4, 11, 28, 29])
def test_one_wrong_energy_takes_no_other_frame_with_it(bad):
    frames = oxides()
    frames[bad] = frames[bad].replace(energy=frames[bad].energy + 500.0)
    kept, dropped = drop_outliers(ListDataset(frames), None, 2.0)
    assert [d.frame for d in dropped] == [bad]
    assert len(kept) == 29
    if bad < 28:  # the only other frame with cobalt decides its energy
        assert dropped[0].value == pytest.approx(50.0, abs=1.0)


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_the_final_fit(seed):
    rng, frames = np.random.default_rng(seed), oxides(seed, 20)
    wrong = sorted(int(k) for k in rng.choice(18, 3, replace=False))
    for k in wrong:
        frames[k] = frames[k].replace(energy=frames[k].energy + float(rng.uniform(-900, 900)))
    _, dropped = drop_outliers(ListDataset(frames), None, 2.0)
    shift = {k: (frames[k].energy - oxides(seed, 20)[k].energy) / 10 for k in wrong}
    assert [d.frame for d in dropped] == [k for k in wrong if abs(shift[k]) > 2]
    assert [d.value for d in dropped] == pytest.approx([shift[d.frame] for d in dropped], abs=1.0)


def test_nothing_is_left_out_within_the_limit():
    frames = oxides()
    assert drop_outliers(ListDataset(frames), None, 2.0)[1] == []
