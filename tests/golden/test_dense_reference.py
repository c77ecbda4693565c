"""The deepmd convention against a literal dense re-implementation, over random option sets."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpa1.frames import make_frame
from dpa1.interop.export import to_neutral
from dpa1.interop.weights import from_neutral
from dpa1.model.elements import electron_configuration
from dpa1.neighbors import find_neighbors
from tests.contracts.systems import ELEMENTS, NUMBERS, option_sets, random_frame, random_potential
from tests.golden.common import assert_same, computed
from tests.golden.dense_reference import evaluate


@st.composite
def deepmd_options(draw: st.DrawFn) -> dict:
    """Every option of the deepmd convention, truncating numbers of slots included."""
    options = draw(option_sets("deepmd"))
    return options | {
        "sel": draw(st.sampled_from([6, 30, 90])),
        "subtract_mean": draw(st.booleans()),
        "slot_statistics": draw(st.booleans()) and not options["exclude_model_pairs"],
        "exclude_elements": draw(st.sampled_from([(), ("O",)])),
        "activation": draw(st.sampled_from([options["activation"], "relu", "relu6", "linear", "none"])),
        "layer_norm_eps": draw(st.sampled_from([1e-5, 1e-3])),
        "fitting": draw(st.sampled_from([(6, 6), (5, 10), (4,)])),
        "fitting_timestep": draw(st.booleans()),
        "fitting_activation": draw(st.sampled_from(["tanh", "gelu"])),
    }


def frames(seed: int) -> list:
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3))[:6] * 1.6
    return [
        random_frame(seed, atoms=5, edge=4.5),
        make_frame(rng.choice(NUMBERS, 6), cluster + rng.uniform(-0.3, 0.3, (6, 3))),
        make_frame([8, 1], [[0, 0, 0], [9.0, 0, 0]]),
    ]


def reference(model: dict, frame: object) -> dict:
    econf = np.array([electron_configuration(symbol) for symbol in ELEMENTS])
    types = [NUMBERS.index(z) for z in frame.numbers]
    return evaluate(model, types, frame.positions, frame.cell if frame.pbc.all() else None, econf)


@settings(max_examples=50, deadline=None)
@example(  # a pair 1e-4 Å within the cutoff
    {
        "convention": "deepmd", "elements": ELEMENTS, "cutoff": 4.0, "switch_start": 0.5, "embedding": (4, 8), "axis": 3,
        "type_embedding": 2, "attention_layers": 1, "attention_width": 6, "normalize": False, "fitting": (6, 6),
        "precision": "float64", "sel": 6, "slot_statistics": False,
    },
    448,
)  # fmt: skip
@given(deepmd_options(), st.integers(0, 1000))
def test_same_as_the_dense_formulas(options: dict, seed: int) -> None:
    potential = random_potential(options, seed)
    model = to_neutral(potential, "model")["model"]
    for frame in frames(seed):
        # Own images lie at equal distances; a literal sort cannot know which of them fills which slot.
        if frame.pbc.all() and (options["slot_statistics"] or options["sel"] == 6):
            continue
        # DeePMD-kit's unit vectors shrink where a row of the environment matrix is shorter than 1e-12 (docs/deepmd.md).
        distances = find_neighbors(frame, potential.cutoff).distances(frame)
        if (distances > potential.cutoff - 4e-4).any():
            continue
        assert_same(computed(potential, frame), reference(model, frame))


@settings(max_examples=20, deadline=None)
@given(deepmd_options(), st.integers(0, 1000))
def test_export_and_import_keep_every_option(options: dict, seed: int) -> None:
    potential = random_potential(options, seed)
    again = from_neutral(to_neutral(potential, "model"), "model")
    frame = frames(seed)[1]
    assert_same(computed(again, frame), computed(potential, frame), 1e-13)
    # An all-zero mean cannot be told from one that is not subtracted; both compute the same.
    assert again.config.model_copy(update={"subtract_mean": potential.config.subtract_mean}) == potential.config


def test_biases_and_vacuum_term_fold_into_the_energy_bias() -> None:
    potential = random_potential(
        {"convention": "deepmd", "elements": ELEMENTS, "cutoff": 4.0, "sel": 30, "embedding": (4, 8), "axis": 3,
         "attention_width": 6, "fitting": (6,), "precision": "float64"}
    )  # fmt: skip
    data = to_neutral(potential, "model")
    data["model"]["fitting"]["atom_ener"] = [None, 0.5, None]
    data["model"]["fitting"]["@variables"]["bias_atom_e"] = np.array([[0.25], [1.5], [-2.0]])
    again = from_neutral(data, "model")
    assert not torch.equal(again.energy_bias, potential.energy_bias)
    for frame in frames(3):
        assert_same(computed(again, frame), reference(data["model"], frame))


def test_truncation_keeps_the_nearest() -> None:
    options = {"convention": "deepmd", "elements": ELEMENTS, "cutoff": 4.0, "embedding": (4, 8), "axis": 3,
               "attention_width": 6, "fitting": (6,), "precision": "float64", "sel": 4}  # fmt: skip
    potential = random_potential(options)
    frame = frames(7)[1]
    full = random_potential(options | {"sel": 40})
    found = computed(potential, frame)
    assert abs(found["energy"][0] - computed(full, frame)["energy"][0]) > 1e-6
    assert_same(found, reference(to_neutral(potential, "model")["model"], frame))


@pytest.mark.parametrize("option", ["subtract_mean", "slot_statistics"])
def test_statistics_reach_the_energy(option: str) -> None:
    options = {"convention": "deepmd", "elements": ELEMENTS, "cutoff": 4.0, "embedding": (4, 8), "axis": 3,
               "attention_width": 6, "fitting": (6,), "precision": "float64", "sel": 20}  # fmt: skip
    frame = frames(7)[1]
    with_option, without = (computed(random_potential(o), frame) for o in (options | {option: True}, options))
    assert abs(with_option["energy"][0] - without["energy"][0]) > 1e-9
