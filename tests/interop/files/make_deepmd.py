"""How the DeePMD-kit 3.2 files beside this script were made: run it with an interpreter that has deepmd-kit.

Tiny DPA-1 models after a few training steps on random water-like clusters: checkpoint.pt (single-task),
multitask.pt (branches water, ice), frozen.pth (TorchScript of the first), numbers.npz (what DeePMD-kit computes).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DESCRIPTOR = {
    "type": "se_atten", "sel": 12, "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 3, "tebd_dim": 4,
    "attn": 6, "attn_layer": 1, "tebd_input_mode": "strip", "smooth_type_embedding": True, "set_davg_zero": False,
    "seed": 1,
}  # fmt: skip
FITTING = {"neuron": [6, 6], "resnet_dt": True, "seed": 1}
LEARNING = {"type": "exp", "start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 2}
LOSS = {"type": "ener", "start_pref_e": 0.1, "limit_pref_e": 1, "start_pref_f": 10, "limit_pref_f": 1}


def system(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    types = np.array([0, 1, 1] * 4)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:12] * 1.7
    coord = grid + rng.uniform(-0.3, 0.3, (6, 12, 3))
    (folder / "set.000").mkdir(parents=True)
    np.savetxt(folder / "type.raw", types, fmt="%d")
    (folder / "type_map.raw").write_text("O\nH\n")
    box = np.tile((np.eye(3) * 6.0).reshape(1, 9), (6, 1))
    for key, value in {
        "coord": coord.reshape(6, -1), "box": box, "energy": rng.normal(-20, 1, 6), "force": rng.normal(0, 1, (6, 36)),
    }.items():  # fmt: skip
        np.save(folder / "set.000" / f"{key}.npy", value)
    return folder


def dp(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "deepmd", "--pt", *arguments], cwd=folder, check=True)


def main() -> None:
    work = Path(tempfile.mkdtemp())
    data = {"systems": [str(system(work / "a", 1))], "batch_size": 2}
    shared = {"numb_steps": 4, "seed": 1, "disp_freq": 2, "save_freq": 4}
    single = {
        "model": {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, "fitting_net": FITTING,
                  "pair_exclude_types": [[1, 1]]},
        "learning_rate": LEARNING, "loss": LOSS, "training": {"training_data": data, **shared},
    }  # fmt: skip
    (work / "input.json").write_text(json.dumps(single))
    dp(work, "train", "input.json")
    dp(work, "freeze", "-c", "model.ckpt-4.pt", "-o", "frozen.pth")
    slim(work / "model.ckpt-4.pt", HERE / "checkpoint.pt")
    shutil.copy(work / "frozen.pth", HERE / "frozen.pth")
    descriptor = {**DESCRIPTOR, "type": "dpa1", "tebd_input_mode": "concat", "temperature": 1.0, "set_davg_zero": True}
    branch = {"type_map": "types", "descriptor": "net", "fitting_net": FITTING}
    multi = {
        "model": {"shared_dict": {"types": ["O", "H"], "net": descriptor},
                  "model_dict": {"water": branch, "ice": branch}},
        "learning_rate": LEARNING, "loss_dict": {"water": LOSS, "ice": LOSS},
        "training": {"model_prob": {"water": 0.5, "ice": 0.5}, **shared, "data_dict": {
            "water": {"training_data": data},
            "ice": {"training_data": {"systems": [str(system(work / "b", 2))], "batch_size": 2}}}},
    }  # fmt: skip
    (work / "multi").mkdir()
    (work / "multi" / "input.json").write_text(json.dumps(multi))
    dp(work / "multi", "train", "input.json")
    slim(work / "multi" / "model.ckpt-4.pt", HERE / "multitask.pt")
    numbers(HERE / "numbers.npz", np.load(work / "a" / "set.000" / "coord.npy")[:1])
    shutil.rmtree(work)


def slim(source: Path, target: Path) -> None:
    import torch

    content = torch.load(source, weights_only=True)
    del content["optimizer"]
    torch.save(content, target)


def numbers(path: Path, coord: np.ndarray) -> None:
    from deepmd.infer import DeepPot

    box, types = (np.eye(3) * 6.0).reshape(1, 9), [0, 1, 1] * 4
    found = {"coord": coord, "box": box, "types": np.array(types)}
    for name, file, head in (
        ("checkpoint", "checkpoint.pt", None), ("frozen", "frozen.pth", None), ("water", "multitask.pt", "water"),
        ("ice", "multitask.pt", "ice"),
    ):  # fmt: skip
        energy, force, virial = DeepPot(str(HERE / file), head=head).eval(coord, box, types)
        found |= {f"{name}_energy": energy, f"{name}_force": force, f"{name}_virial": virial}
    np.savez(path, **found)


if __name__ == "__main__":
    main()
