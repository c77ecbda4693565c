"""Comparisons that the golden and interop tests share."""

import numpy as np
from ase.data import atomic_numbers

from dpa1.batch import make_batch
from dpa1.frames import Frame, make_frame
from dpa1.model.potential import Potential

GOLDEN = {"energy": "energy", "atomic_energy": "atom_energy", "forces": "force", "virial": "virial"}


def frame_of(data: dict[str, np.ndarray], elements: tuple[str, ...]) -> Frame:
    """The structure in a golden file."""
    numbers = [atomic_numbers[elements[t]] for t in data["type"]]
    return make_frame(numbers, data["coord"], data.get("box"))


def computed(potential: Potential, frame: Frame) -> dict[str, np.ndarray]:
    """Energy, atomic energies, forces and virial as numpy."""
    out = potential.predict(make_batch([frame], potential.cutoff))
    return {key: value.detach().numpy() for key, value in out.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], bound: float = 1e-10) -> None:
    """Every expected quantity within ``bound`` of its largest value."""
    for key, value in expected.items():
        value = np.asarray(value).reshape(-1)
        error = np.abs(found[key].reshape(-1) - value).max() / max(np.abs(value).max(), 1e-8)
        assert error < bound, f"{key}: relative error {error:.1e}"
