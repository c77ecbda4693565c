"""The small DeePMD-kit files of this folder and what DeePMD-kit computes with them."""

from pathlib import Path

import numpy as np

from dpa1.frames import Frame, make_frame

FILES = Path(__file__).parent / "files"


def numbers(name: str) -> tuple[Frame, dict[str, np.ndarray]]:
    """The structure, and energy, forces and virial of one model there."""
    with np.load(FILES / "numbers.npz") as data:
        frame = make_frame([(8, 1)[t] for t in data["types"]], data["coord"].reshape(-1, 3), data["box"].reshape(3, 3))
        expected = {ours: data[f"{name}_{theirs}"] for ours, theirs in
                    (("energy", "energy"), ("forces", "force"), ("virial", "virial"))}  # fmt: skip
    return frame, expected
