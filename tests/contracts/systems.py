"""Structures and random option sets that the contracts are tried on."""

import numpy as np
import torch
from hypothesis import strategies as st

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.frames import Frame, make_frame
from dpa1.model.potential import Potential

CUTOFF = 4.0
ELEMENTS = ("H", "O", "Cu")
NUMBERS = (1, 8, 29)


def random_frame(seed: int, atoms: int = 7, pbc: object = True, edge: float = 5.0) -> Frame:
    """Atoms of three elements, no two closer than 0.9 Å, in a skewed cell (smaller than twice the cutoff)."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * edge + rng.uniform(-0.8, 0.8, (3, 3))
    positions: list[np.ndarray] = []
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
    while len(positions) < atoms:
        trial = rng.uniform(0, 1, 3) @ cell
        if all(np.linalg.norm(trial - p + images, axis=1).min() > 0.9 for p in positions):
            positions.append(trial)
    numbers = rng.choice(NUMBERS, atoms)
    return make_frame(numbers, np.array(positions), cell, pbc)


@st.composite
def option_sets(draw: st.DrawFn, convention: str | None = None) -> dict:
    """Random architecture options, small widths."""
    convention = convention or draw(st.sampled_from(["smooth", "deepmd"]))
    options = {
        "convention": convention,
        "elements": ELEMENTS,
        "cutoff": CUTOFF,
        "switch_start": draw(st.sampled_from([0.5, 2.0])),
        "environment_protection": draw(st.sampled_from([0.0, 0.3])),
        "embedding": draw(st.sampled_from([(4, 8), (3, 5, 8), (5, 5, 10)])),
        "axis": 3,
        "type_embedding": draw(st.sampled_from([2, 3, 6])),
        "type_input": draw(st.sampled_from(["concat", "strip"])),
        "one_sided": draw(st.booleans()),
        "electron_configuration": draw(st.booleans()),
        "type_embedding_bias": draw(st.booleans()),
        "append_type_embedding": draw(st.booleans()),
        "attention_layers": draw(st.integers(0, 3)),
        "attention_width": 6,
        "gate": draw(st.booleans()),
        "normalize": draw(st.booleans()),
        "temperature": draw(st.sampled_from([None, 1.0])),
        "scaling": draw(st.sampled_from([1.0, 2.0])),
        "activation": draw(st.sampled_from(["tanh", "silu", "gelu", "softplus", "sigmoid", "silut:3.0"])),
        "timestep_residual": draw(st.booleans()),
        "exclude_pairs": draw(st.sampled_from([(), (("H", "Cu"),)])),
        "exclude_model_pairs": draw(st.sampled_from([(), (("O", "O"),)])),
        "fitting": (6, 6),
        "precision": "float64",
    }
    if convention == "deepmd":
        options |= {"sel": draw(st.sampled_from([30, 90])), "smooth_attention": draw(st.booleans())}
    else:
        options |= {"mean_neighbors": 20.0, "subtract_mean": draw(st.booleans())}
    return options


def example_options(**changes: object) -> dict:
    """A small two-layer model of the default convention."""
    return {
        "elements": ELEMENTS, "cutoff": CUTOFF, "embedding": (4, 8), "axis": 3, "type_embedding": 3,
        "attention_width": 6, "fitting": (6,), "mean_neighbors": 20.0, "precision": "float64", **changes,
    }  # fmt: skip


def random_potential(options: dict, seed: int = 0) -> Potential:
    """Random weights and non-trivial statistics."""
    torch.manual_seed(seed)
    potential = Potential(ModelConfig(**options))
    with torch.no_grad():
        potential.energy_bias.normal_()
        potential.descriptor.scale.uniform_(0.2, 0.5)
        if potential.config.subtract_mean:
            potential.descriptor.mean.uniform_(0.1, 0.4)
    return potential.eval()


def predict(potential: Potential, *frames: Frame) -> dict[str, np.ndarray]:
    """All quantities as numpy."""
    out = potential.predict(make_batch(frames, potential.cutoff), descriptor=True)
    return {key: value.numpy() for key, value in out.items()}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
