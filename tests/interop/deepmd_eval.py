"""Run by an interpreter with deepmd-kit: what it computes with some models, as ``MODEL FRAMES.npz OUT.npz`` triples.

``.dp`` and ``.yaml`` go through the NumPy backend (energies only); ``.pth`` through PyTorch.
"""

import sys

import numpy as np


def main() -> None:
    from deepmd.infer import DeepPot

    for model, frames, out in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        potential = DeepPot(model)
        with np.load(frames) as data:
            box = data["box"].reshape(1, 9) if "box" in data else None
            result = potential.eval(data["coord"].reshape(1, -1), box, data["type"].tolist(), atomic=True)
        energy, force, virial, atomic = result[:4]
        np.savez(out, energy=energy, forces=force, virial=virial, atomic_energy=atomic)


if __name__ == "__main__":
    main()
