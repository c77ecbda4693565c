"""No neighbour is dropped; nothing depends on padding, batch company, chunks or threads; limits are well behaved."""

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.errors import UserError
from dpa1.frames import make_frame
from dpa1.model import potential as potential_module
from dpa1.model.isolated import empty_environment_energy
from tests.contracts.systems import (
    ELEMENTS,
    example_options,
    option_sets,
    predict,
    random_frame,
    random_potential,
    relative,
)

few = settings(max_examples=40, deadline=None)


@few
@given(option_sets(), st.integers(0, 99))
def test_batch_company_changes_nothing(options, seed):
    potential = random_potential(options, seed)
    frames = [
        random_frame(seed, 7), random_frame(seed + 1, 3, pbc=False), random_frame(seed + 2, 1, pbc=False),
        random_frame(seed + 3, 9, pbc=(True, False, True), edge=6.0),
    ]  # fmt: skip
    together = predict(potential, *frames)
    start = 0
    for k, frame in enumerate(frames):
        alone = predict(potential, frame)
        stop = start + len(frame)
        assert relative(together["energy"][k], alone["energy"][0]) < 1e-12
        assert relative(together["forces"][start:stop], alone["forces"]) < 1e-12
        assert relative(together["virial"][k], alone["virial"][0]) < 1e-12
        assert relative(together["descriptor"][start:stop], alone["descriptor"]) < 1e-12
        start = stop


@few
@given(option_sets(), st.integers(0, 99), st.sampled_from([1, 50, 400]))
def test_chunks_change_nothing(options, seed, slots):
    potential, frame = random_potential(options, seed), random_frame(seed, 9, edge=6.0)
    whole = predict(potential, frame)
    before = potential_module.CHUNK_SLOTS
    potential_module.CHUNK_SLOTS = slots
    try:
        pieces = predict(potential, frame)
    finally:
        potential_module.CHUNK_SLOTS = before
    for key, value in whole.items():
        assert relative(pieces[key], value) < 1e-12, key


@few
@given(option_sets(), st.integers(0, 99))
def test_training_and_inference_agree(options, seed):
    """The differentiable evaluation gives the numbers of the chunked one."""
    from dpa1.batch import make_batch

    potential = random_potential(options, seed)
    batch = make_batch([random_frame(seed), random_frame(seed + 1, 4, pbc=False)], potential.cutoff)
    a, b = potential.predict(batch), potential.predict(batch, create_graph=True)
    for key, value in a.items():
        assert relative(b[key].detach().numpy(), value.numpy()) < 1e-12, key


def test_number_of_threads_changes_only_rounding():
    potential = random_potential(example_options(), 0)
    frame = random_frame(0, 12, edge=6.0)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(predict(potential, frame)["forces"])
    torch.set_num_threads(before)
    assert relative(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("spacing", [0.6, 1.0, 2.0])
def test_no_neighbour_is_dropped_at_any_density(spacing):
    """A shell of far atoms matters however many nearer ones there are: each one's removal changes the descriptor."""
    axis = np.arange(-2, 3) * spacing
    grid = np.array(np.meshgrid(axis, axis, axis)).reshape(3, -1).T
    grid = grid + 0.01 * np.random.default_rng(0).normal(size=grid.shape)
    frame = make_frame(np.full(len(grid), 8), grid, pbc=False)
    potential = random_potential(example_options(), 2)
    centre = int(np.argmin(np.linalg.norm(grid, axis=1)))
    far = np.linalg.norm(grid - grid[centre], axis=1)
    atom = int(np.argmax(np.where(far < 3.4, far, 0)))
    keep = np.arange(len(grid)) != atom
    without = frame.replace(numbers=frame.numbers[keep], positions=frame.positions[keep])
    a = predict(potential, frame)["descriptor"][centre]
    b = predict(potential, without)["descriptor"][centre - (atom < centre)]
    assert np.abs(a - b).max() > 1e-9


@few
@given(option_sets(), st.sampled_from(ELEMENTS))
def test_isolated_atom(options, symbol):
    potential = random_potential(options, 4)
    index = ELEMENTS.index(symbol)
    out = predict(potential, make_frame([atomic_numbers[symbol]], np.ones((1, 3))))
    constant = empty_environment_energy(potential)[index]
    assert out["energy"][0] == pytest.approx(potential.energy_bias[0, index].item() + constant, abs=1e-12)
    assert np.array_equal(out["forces"], np.zeros((1, 3)))
    assert np.isfinite(out["energy"]).all()
    assert np.array_equal(out["virial"][0], np.zeros((3, 3)))


def test_atoms_on_one_spot_are_named():
    frame = make_frame([1, 8, 1], [[0, 0, 0], [1, 0, 0], [1, 0, 1e-6]], source="a.xyz", index=3)
    with pytest.raises(UserError, match=r"a\.xyz, frame 3: atoms 1 and 2 are 0\.000 Å"):
        predict(random_potential(example_options()), frame)


def test_unknown_element_lists_the_known_ones():
    with pytest.raises(UserError, match="does not know He; it knows H, O, Cu"):
        predict(random_potential(example_options()), make_frame([2], [[0, 0, 0]]))


@settings(max_examples=40, deadline=None)
@given(option_sets(), st.integers(0, 99))
def test_float32_error_budget(options, seed):
    potential, frame = random_potential(options, seed), random_frame(seed, 9, edge=6.0)
    exact = predict(potential, frame)["forces"]
    single = predict(potential.set_precision("float32"), frame)
    assert np.abs(single["forces"] - exact).max() < 1e-5 * max(1.0, np.abs(exact).max())


@pytest.mark.parametrize("cast", [torch.nn.Module.float, lambda module: module.to(torch.float32), torch.nn.Module.half])
def test_casts_keep_the_energy_bias(cast):
    potential = random_potential(example_options())
    potential.energy_bias.fill_(-12345.678901)
    before = potential.energy_bias.clone()
    assert cast(potential) is potential
    assert potential.dtype in (torch.float32, torch.float16)
    assert torch.equal(potential.energy_bias, before)
