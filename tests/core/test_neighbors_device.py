"""The search in torch finds the pairs of the other one, in the same order."""

import numpy as np
import pytest
import torch

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
