"""DeePMD-kit's files as the base of a fine-tune: weights, convention and normalisation are theirs, and it can be written back."""

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import dpa1
from dpa1.errors import UserError
from dpa1.frames import to_ase
from dpa1.interop.convert import convert
from dpa1.interop.load import load_potential
from dpa1.model.file import load_model
from tests.golden.common import computed
from tests.interop.common import FILES, numbers

GOLDEN = FILES.parents[1] / "golden" / "models"
QUICK = {"training": {"threads": 1, "device": "cpu", "batch_frames": 2}}


def water_and(symbol, n=3):
    """Shaken frames of the water of this folder, an H of which is ``symbol``."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = to_ase(numbers("checkpoint")[0])
        atoms.symbols[list(atoms.symbols).index("H")] = symbol
        atoms.rattle(0.02, rng=rng)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(0, 0.1, (len(atoms), 3)))
        frames.append(atoms)
    return frames


@pytest.mark.parametrize(
    "base",
    [FILES / "checkpoint.pt", FILES / "frozen.pth", GOLDEN / "six_elements_davg/model.dp"],
    ids=["pt", "pth", "dp"],
)
def test_a_file_of_deepmd_kit_is_fine_tuned(base, tmp_path):
    write(tmp_path / "new.xyz", water_and("S"))
    given = {"method": "lora", "steps": 2, "config": QUICK, "quiet": True}
    result = dpa1.finetune(base, tmp_path / "new.xyz", output=tmp_path / "out", **given)
    old, new = load_potential(base), load_model(result.model)
    assert new.config == old.config.model_copy(update={"elements": (*old.elements, "S")})
    assert (new.config.convention, new.levels) == ("deepmd", old.levels)
    state = new.state_dict()
    kept = [name for name in old.state_dict() if name.startswith("descriptor.embedding")]
    assert kept
    assert all(torch.equal(state[name], old.state_dict()[name]) for name in kept)
    assert not torch.equal(state["fitting.output.weight"], old.state_dict()["fitting.output.weight"])
    # DeePMD-kit can go on with it.
    convert(result.model, tmp_path / "back.dp")
    frame = dpa1.read(tmp_path / "new.xyz")[0]
    np.testing.assert_allclose(
        computed(load_potential(tmp_path / "back.dp"), frame)["forces"], computed(new, frame)["forces"], atol=1e-9
    )


def test_a_multi_task_file_wants_a_branch(tmp_path):
    write(tmp_path / "new.xyz", water_and("H"))
    with pytest.raises(UserError, match=r"it holds water, ice: take one out with  dpa1 convert .* --branch water"):
        dpa1.finetune(FILES / "multitask.pt", tmp_path / "new.xyz", output=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
