"""The composition fit finds known energies, and says what it cannot know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.data.composition import fit_composition, non_periodic_atoms
from dpa1.data.dataset import open_dataset
from dpa1.errors import UserError
from tests.data.common import FILES


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 80))
@settings(deadline=None, max_examples=50)
def test_same_fit_as_least_squares(seed, elements, frames):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 6, (frames, elements))
    counts[:, 0] += 1
    energies = random.normal(size=frames) * 100
    names = ["H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg"][:elements]
    fit = fit_composition((counts, energies), names)
    n = counts.sum(1)
    expected, _, rank, _ = np.linalg.lstsq(counts / n[:, None], energies / n, rcond=1e-9)
    residual = energies / n - counts / n[:, None] @ expected
    assert fit.rank == rank
    assert fit.rms == pytest.approx(np.sqrt(np.mean(residual**2)), abs=1e-6)
    present = counts.sum(0) > 0
    assert fit.absent == tuple(e for e, p in zip(names, present, strict=True) if not p)
    if rank == present.sum():
        np.testing.assert_allclose(fit.bias[present], expected[present], rtol=1e-6, atol=1e-6)
        assert not fit.tied
    else:
        assert fit.tied


def test_what_water_and_salt_leave_open():
    counts = np.array([[2, 1, 0, 0, 0]] * 3 + [[0, 0, 1, 1, 0]] * 2 + [[0, 0, 0, 0, 1]])
    energies = np.array([-14.0] * 3 + [-6.0] * 2 + [-1.5])
    fit = fit_composition((counts, energies), ["H", "O", "Na", "Cl", "Ar"])
    assert fit.rank == 3
    assert fit.tied == (("H", "O"), ("Na", "Cl"))
    assert fit.bias[4] == pytest.approx(-1.5)
    assert fit.rms == pytest.approx(0.0, abs=1e-9)
    assert "H, O (rank 1 of 2); Na, Cl (rank 1 of 2)" in fit.sentence()
    assert fit.table().count("not by itself") == 4
    # the water energy is shared evenly
    assert fit.bias[0] == pytest.approx(fit.bias[1], abs=2.0)


def test_a_tied_group_may_be_known_in_more_than_one_combination():
    fit = fit_composition((np.array([[1, 1, 0, 0, 2], [0, 0, 1, 1, 2]]), np.ones(2)), ["H", "O", "Na", "Cl", "Ar"])
    assert fit.tied == (("H", "O", "Na", "Cl", "Ar"),)
    assert fit.tied_ranks == (2,)


def test_isolated_atoms_decide():
    dataset = open_dataset(FILES / "bpa.xyz")
    alone = non_periodic_atoms(dataset.table)
    assert alone["O"] == pytest.approx(-2041.9816, abs=1e-3)
    fit = fit_composition(dataset, fixed=alone)
    assert fit.bias.tolist() == [alone[e] for e in fit.elements]
    assert fit.rank == 0
    assert fit_composition(dataset).rank == 4
    molecules = dataset.subset(range(4, 8))
    assert fit_composition(molecules).tied == (("H", "C", "N", "O"),)
    partly = fit_composition(molecules, fixed={"C": alone["C"], "N": alone["N"], "O": alone["O"]})
    assert partly.bias[0] == pytest.approx(alone["H"], abs=20)
    assert not partly.tied


def test_rare_elements_are_no_ties_and_large_energies_lose_nothing():
    random = np.random.default_rng(0)
    counts = np.concatenate([random.integers(1, 40, (20000, 2)), np.array([[99, 100]])])
    counts = np.concatenate([counts, np.zeros((20001, 1))], axis=1)
    counts[-1, 2] = 1
    truth = np.array([-1e5, -2e4, -3e3])
    fit = fit_composition((counts, counts @ truth), ["Au", "Pt", "H"])
    assert fit.rank == 3
    np.testing.assert_allclose(fit.bias, truth, rtol=1e-9)
    assert fit.rms < 1e-6


def test_errors_and_ridge():
    dataset = open_dataset(FILES / "oxides.xyz")
    with pytest.raises(UserError, match=r"Sn.*not among"):
        fit_composition(dataset, ["O", "Ti", "Ir"])
    with pytest.raises(UserError, match="no frame has an energy"):
        fit_composition([frame.replace(energy=None) for frame in dataset])
    loose, tight = fit_composition(dataset), fit_composition(dataset, ridge=1e3)
    mean = np.mean(dataset.table.energy / dataset.table.n_atoms)
    assert np.abs(tight.bias - mean).max() < 0.1 < np.abs(loose.bias - mean).max()
    assert fit_composition(dataset, ["O", "Ti", "Ir", "Sn", "H"]).absent == ("H",)
    np.testing.assert_allclose(
        loose.residuals(dataset.table) ** 2 @ np.ones(len(dataset)) / len(dataset), loose.rms**2, rtol=1e-9
    )
