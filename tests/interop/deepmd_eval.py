"""Run by an interpreter with deepmd-kit: what it computes with some models, as ``MODEL FRAMES.npz OUT.npz`` triples.

Energies of ``.dp`` and ``.yaml`` come from the NumPy backend; forces and virials, and all of ``.pth``, from PyTorch, and
they are left out where deepmd-kit was installed without it.
"""

import sys

import numpy as np


def main() -> None:
    from deepmd.infer import DeepPot

    for model, frames, out in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        with np.load(frames) as data:
            coord, types = data["coord"].reshape(1, -1), data["type"].tolist()
            box = data["box"].reshape(1, 9) if "box" in data else None
        energy, force, virial, atomic = DeepPot(model).eval(coord, box, types, atomic=True)[:4]
        found = {"energy": energy, "atomic_energy": atomic, "forces": force, "virial": virial}
        if not model.endswith(".pth"):
            found = {key: found[key] for key in ("energy", "atomic_energy")} | slopes(model, coord, box, types)
        np.savez(out, **found)


def slopes(model: str, coord: np.ndarray, box: np.ndarray | None, types: list[int]) -> dict[str, np.ndarray]:
    """Forces and virial of a neutral model from the PyTorch backend."""
    try:
        import torch
    except ImportError:
        return {}
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt.model.model.model import BaseModel

    potential = BaseModel.deserialize(load_dp_model(model)["model"])
    found = potential(
        torch.tensor(coord).reshape(1, -1, 3).requires_grad_(True),
        torch.tensor([types]),
        box=None if box is None else torch.tensor(box),
    )
    return {"forces": found["force"].detach().numpy(), "virial": found["virial"].detach().numpy()}


if __name__ == "__main__":
    main()
