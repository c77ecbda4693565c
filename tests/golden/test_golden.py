"""DeePMD-kit's own numbers for nine models, also after conversion there and back."""

from pathlib import Path

import numpy as np
import pytest

from dpa1.interop.convert import convert
from dpa1.interop.load import load_potential
from tests.golden.common import GOLDEN, assert_same, computed, frame_of

MODELS = sorted((Path(__file__).parent / "models").iterdir())
SMALL = [folder for folder in MODELS if folder.name.startswith("six")]


def check(model: Path, folder: Path, pattern: str = "*.npz") -> None:
    potential = load_potential(model)
    files = sorted(folder.glob(pattern))
    assert files
    for file in files:
        with np.load(file) as data:
            found = computed(potential, frame_of(data, potential.elements))
            assert_same(found, {ours: data[theirs] for ours, theirs in GOLDEN.items()})


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_every_configuration_of_every_model(folder: Path) -> None:
    check(folder / "model.dp", folder)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_there_and_back_through_dpa1(folder: Path, tmp_path: Path) -> None:
    convert(folder / "model.dp", tmp_path / "a.dpa1")
    convert(tmp_path / "a.dpa1", tmp_path / "b.dp")
    for name in ("a.dpa1", "b.dp"):
        check(tmp_path / name, folder, "[!w]*.npz")


@pytest.mark.parametrize("folder", SMALL, ids=lambda folder: folder.name)
def test_as_yaml(folder: Path, tmp_path: Path) -> None:
    convert(folder / "model.dp", tmp_path / "a.yaml")
    check(tmp_path / "a.yaml", folder)


def test_batch_company_changes_nothing() -> None:
    folder = SMALL[1]
    potential = load_potential(folder / "model.dp")
    from dpa1.batch import make_batch

    frames, expected = [], []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as data:
            frames.append(frame_of(data, potential.elements))
            expected.append(data["energy"][0])
    out = potential.predict(make_batch(frames, potential.cutoff))
    np.testing.assert_allclose(out["energy"].numpy(), expected, rtol=1e-13)
