"""The search in torch finds the pairs of the other one, in the same order."""

import numpy as np
import pytest
import torch

from dpa1 import batch, neighbors_device
from dpa1.errors import UserError
from dpa1.frames import make_frame
from dpa1.neighbors import find_neighbors
from dpa1.neighbors_device import find_on_device

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CELLS = {
    "cube": (np.eye(3) * 9.0, True),
    "skewed": (np.array([[6.0, 0.0, 0.0], [5.0, 4.0, 0.0], [-3.0, 2.5, 7.0]]), True),
    "many images": (np.array([[2.1, 0.0, 0.0], [0.7, 1.9, 0.0], [0.2, 0.3, 2.4]]), True),
    "slab": (np.array([[7.0, 0.0, 0.0], [2.0, 6.0, 0.0], [0.0, 0.0, 0.0]]), (True, True, False)),
    "wire": (np.diag([0.0, 3.0, 0.0]), (False, True, False)),
    "no cell": (None, False),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("seed", range(3))
def test_same_pairs_in_the_same_order(name, seed, device):
    cell, pbc = CELLS[name]
    rng = np.random.default_rng(seed)
    count = 3 if name == "many images" else 40
    # Far outside the cell as well: what is wrapped must come back in the shift.
    positions = rng.uniform(-8.0, 8.0, (count, 3))
    frame = make_frame(np.ones(count, dtype=int), positions, cell, pbc)
    expected = find_neighbors(frame, 4.3)
    centre, neighbor, shift = (x.cpu().numpy() for x in find_on_device(frame, 4.3, torch.device(device)))
    assert len(expected.centre) > 10
    np.testing.assert_array_equal(centre, expected.centre)
    np.testing.assert_array_equal(neighbor, expected.neighbor)
    np.testing.assert_array_equal(shift, expected.shift)


@pytest.mark.parametrize("device", DEVICES)
def test_lone_atom_and_two_on_one_spot(device):
    lone = make_frame([1], np.zeros((1, 3)))
    assert [len(x) for x in find_on_device(lone, 4.0, torch.device(device))] == [0, 0, 0]
    with pytest.raises(UserError, match="atoms 0 and 1"):
        find_on_device(make_frame([1, 1], np.zeros((2, 3))), 4.0, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_piece_by_piece_and_far_from_home(device, monkeypatch):
    """Small pieces, and atoms so far outside the cell that their shifts fit no single number to sort by."""
    monkeypatch.setattr(neighbors_device, "CANDIDATES", 300)
    monkeypatch.setattr(neighbors_device, "GPU_CANDIDATES", 300)
    rng = np.random.default_rng(5)
    positions = rng.uniform(0.0, 7.0, (60, 3))
    for far in (0, 10**6):
        positions[::3] += 7.0 * rng.integers(-far, far + 1, (20, 3))
        frame = make_frame(np.ones(60, dtype=int), positions, np.eye(3) * 7.0, True)
        expected = find_neighbors(frame, 3.1)
        found = [x.cpu().numpy() for x in find_on_device(frame, 3.1, torch.device(device))]
        assert len(expected.centre) > 500
        for mine, theirs in zip(found, (expected.centre, expected.neighbor, expected.shift), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_batch_of_pairs_searched_on_the_device():
    """What ``make_batch`` does for a GPU, with the CPU in its place."""
    rng = np.random.default_rng(0)
    frames = [
        make_frame(np.ones(n, dtype=int), rng.uniform(0.0, 8.0, (n, 3)), np.eye(3) * edge, True)
        for n, edge in ((20, 8.0), (1, 2.1), (50, 8.5))
    ]
    starts = np.array([0, 20, 21])
    expected = batch._pairs(frames, [find_neighbors(frame, 4.0) for frame in frames], starts)
    found = batch._pairs_on_device(frames, 4.0, starts, torch.device("cpu"))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-12)


def test_large_frames_are_searched_where_the_batch_goes(monkeypatch):
    searched = []

    def search(frame, cutoff, device):
        searched.append((len(frame), device.type))
        return find_on_device(frame, cutoff, torch.device("cpu"))

    monkeypatch.setattr(batch, "find_on_device", search)
    monkeypatch.setattr(batch, "LARGE", 10)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *arguments, **options: self)  # no GPU is needed
    frame = make_frame(
        np.ones(30, dtype=int), np.random.default_rng(1).uniform(0.0, 9.0, (30, 3)), np.eye(3) * 9.0, True
    )
    expected = batch.make_batch([frame], 4.0)
    assert not searched
    found = batch.make_batch([frame], 4.0, device="cuda")
    assert searched == [(30, "cuda")]
    torch.testing.assert_close(found.shift, expected.shift)
    assert torch.equal(found.neighbor, expected.neighbor)
    batch.make_batch([make_frame([1], [[0.0, 0.0, 0.0]])], 4.0, device="cuda")
    assert len(searched) == 1
