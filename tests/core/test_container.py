"""Model files: read back exactly, never half, never executed, never silently damaged."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.container import KEY, read_container, replace_file, write_container
from dpa1.errors import UserError
from dpa1.model.file import FORMAT, load_model, save_model
from dpa1.model.potential import Potential
from tests.contracts.systems import example_options, option_sets, predict, random_frame, random_potential


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.dpa1"
    save_model(random_potential(example_options(embedding=(3, 4), axis=2, fitting=(4,), attention_layers=1)), path)
    return path.read_bytes()


@settings(max_examples=10, deadline=None)
@given(options=option_sets(), precision=st.sampled_from(["float32", "float64"]))
def test_round_trip_is_exact(tmp_path_factory, options, precision):
    path = tmp_path_factory.mktemp("round") / "m.dpa1"
    potential = random_potential(options).set_precision(precision, "float64")
    potential.info = {"licence": "MIT", "trained_on": ["water"]}
    save_model(potential, path)
    again = load_model(path)
    assert again.config == potential.config
    assert again.info == potential.info
    frame = random_frame(1)
    for key, value in predict(potential, frame).items():
        assert np.array_equal(value, predict(again, frame)[key]), key


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory, model_bytes, data):
    position = data.draw(st.integers(0, len(model_bytes) - 1))
    bit = data.draw(st.integers(0, 7))
    content = bytearray(model_bytes)
    content[position] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "flipped.dpa1"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.dpa1"):
        load_model(path)


@settings(max_examples=30, deadline=None)
@given(fraction=st.floats(0, 0.9999))
def test_any_truncation_is_noticed(tmp_path_factory, model_bytes, fraction):
    path = tmp_path_factory.mktemp("cut") / "cut.dpa1"
    path.write_bytes(model_bytes[: int(fraction * len(model_bytes))])
    with pytest.raises(UserError, match=r"cut\.dpa1"):
        load_model(path)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_disguised_pickle_is_not_executed(tmp_path):
    trap, mark = tmp_path / "model.dpa1", tmp_path / "executed"
    trap.write_bytes(pickle.dumps(Trap(str(mark))))
    with pytest.raises(UserError, match="pickle"):
        load_model(trap)
    with zipfile.ZipFile(trap, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(str(mark))))
    with pytest.raises(UserError, match="pickle or torch archive"):
        load_model(trap)
    assert not mark.exists()


def test_newer_format_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "new.dpa1"
    write_container(path, "model", FORMAT + 1, {"something": "else"}, {})
    with pytest.raises(UserError, match="newer dpa1"):
        load_model(path)


def test_other_files_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "missing.dpa1")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path)
    (tmp_path / "text.dpa1").write_text("this is a letter, not a model, and long enough")
    with pytest.raises(UserError, match="not a dpa1 file"):
        load_model(tmp_path / "text.dpa1")
    save_file({"a": torch.zeros(3)}, tmp_path / "other.dpa1")
    with pytest.raises(UserError, match="not one written by dpa1"):
        load_model(tmp_path / "other.dpa1")
    write_container(tmp_path / "c.dpa1", "checkpoint", 1, {}, {"a": torch.zeros(3)})
    with pytest.raises(UserError, match="holds a checkpoint, not a model"):
        load_model(tmp_path / "c.dpa1")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.dpa1"
    replace_file(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.dpa1"]


def test_header_holds_what_a_person_needs(model_bytes):
    length = int.from_bytes(model_bytes[:8], "little")
    header = json.loads(json.loads(json.loads(model_bytes[8 : 8 + length])["__metadata__"][KEY])["header"])
    assert header["units"]["energy"] == "eV"
    assert header["config"]["elements"] == ["H", "O", "Cu"]
    assert header["levels"] == ["default"]


def test_every_tensor_dtype_survives(tmp_path):
    tensors = {
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]), "half": torch.ones(3, dtype=torch.bfloat16), "long": torch.arange(4),
    }  # fmt: skip
    write_container(tmp_path / "t", "checkpoint", 1, {"n": 1}, tensors)
    version, header, again = read_container(tmp_path / "t", "checkpoint", 1)
    assert (version, header) == (1, {"n": 1})
    assert all(torch.equal(tensors[k], again[k]) and tensors[k].dtype == again[k].dtype for k in tensors)


def test_model_without_elements_is_refused():
    with pytest.raises(UserError, match="elements"):
        Potential(ModelConfig(mean_neighbors=10.0))


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_every_archived_format_still_loads(version):
    """One file per format version ever written, with the numbers it gave then. A new format adds its own."""
    files = Path(__file__).parent / "files"
    potential = load_model(files / f"model_v{version}.dpa1")
    expected = np.load(files / f"model_v{version}.npz")
    out = potential.predict(make_batch([random_frame(1)], potential.cutoff), level=potential.levels[-1])
    assert np.allclose(out["energy"], expected["energy"], rtol=1e-12)
    assert np.allclose(out["forces"], expected["forces"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_the_format_did_not_change_without_a_new_version(tmp_path, version):
    """Writing an archived model again gives the same version, names, shapes and header keys."""
    archived = Path(__file__).parent / "files" / f"model_v{version}.dpa1"
    save_model(load_model(archived), tmp_path / "again.dpa1")
    (old_version, old_header, old), (new_version, header, new) = (
        read_container(p, "model", FORMAT) for p in (archived, tmp_path / "again.dpa1")
    )
    assert old_version == new_version == version
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    assert header.keys() == old_header.keys()
    assert header["config"].keys() == old_header["config"].keys()
