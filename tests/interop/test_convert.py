"""dpa1 convert: every pair of formats, nothing overwritten, one sentence for what cannot be."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from dpa1.cli.convert import register
from dpa1.errors import UserError
from dpa1.interop.convert import convert
from dpa1.interop.load import load_potential
from dpa1.interop.neutral import read_neutral, write_neutral
from dpa1.interop.weights import from_neutral
from dpa1.model.file import load_model, save_model
from dpa1.model.potential import Potential
from tests.contracts.systems import example_options, random_frame, random_potential
from tests.golden.common import assert_same, computed
from tests.interop.common import FILES, numbers

DEEPMD = {**example_options(), "mean_neighbors": None, "convention": "deepmd", "sel": 30}


@pytest.mark.parametrize("chain", [("a.dp",), ("a.yaml", "b.dpa1", "c.dp"), ("a.dpa1", "b.yml"), ("a.dp", "b.yaml")])
@pytest.mark.parametrize("source", ["checkpoint.pt", "frozen.pth"])
def test_chains_of_formats_keep_the_numbers(tmp_path: Path, source: str, chain: tuple[str, ...]) -> None:
    path = FILES / source
    for name in chain:
        convert(path, tmp_path / name)
        path = tmp_path / name
    frame, expected = numbers(Path(source).stem)
    assert_same(computed(load_potential(path), frame), expected, 1e-12)


def test_precisions_survive(tmp_path: Path) -> None:
    potential = random_potential(DEEPMD | {"precision": "float32", "fitting_precision": "float64"})
    save_model(potential, tmp_path / "a.dpa1")
    convert(tmp_path / "a.dpa1", tmp_path / "b.dp")
    again = load_potential(tmp_path / "b.dp")
    assert again.config == potential.config
    frame = random_frame(1)
    assert_same(computed(again, frame), computed(potential, frame), 1e-12)


def test_one_level_of_several(tmp_path: Path) -> None:
    config = random_potential(DEEPMD).config
    potential = Potential(config, ["pbe", "hse"])
    potential.energy_bias[1] += 3.0
    save_model(potential, tmp_path / "a.dpa1")
    with pytest.raises(UserError, match="pbe, hse"):
        convert(tmp_path / "a.dpa1", tmp_path / "b.dp")
    convert(tmp_path / "a.dpa1", tmp_path / "b.dp", branch="hse")
    np.testing.assert_array_equal(load_potential(tmp_path / "b.dp").energy_bias[0], potential.energy_bias[1])
    convert(tmp_path / "a.dpa1", tmp_path / "c.dpa1")
    assert load_model(tmp_path / "c.dpa1").levels == ("pbe", "hse")


def test_smooth_models_cannot_leave(tmp_path: Path) -> None:
    save_model(random_potential(example_options()), tmp_path / "a.dpa1")
    with pytest.raises(UserError, match="convention: smooth"):
        convert(tmp_path / "a.dpa1", tmp_path / "b.dp")
    assert not (tmp_path / "b.dp").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "a.dp"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match="exists already"):
        convert(FILES / "checkpoint.pt", target)
    assert target.read_bytes() == b"precious"
    convert(FILES / "checkpoint.pt", target, overwrite=True)
    assert isinstance(load_potential(target), Potential)


@pytest.mark.parametrize("target", ["a.pth", "a.pt", "a.txt", "a"])
def test_targets_that_cannot_be_written(tmp_path: Path, target: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        convert(FILES / "checkpoint.pt", tmp_path / target)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        convert(FILES / "checkpoint.pt", tmp_path / "new" / "a.dp")
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "none.dp", tmp_path / "a.dpa1")


@pytest.mark.parametrize("suffix", [".dp", ".yaml"])
def test_neutral_files_notice_damage(tmp_path: Path, suffix: str) -> None:
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    convert(FILES / "checkpoint.pt", whole)
    content = whole.read_bytes()
    for cut in (0, 5, 100, len(content) // 2):
        broken.write_bytes(content[:cut])
        with pytest.raises(UserError, match="broken"):
            load_potential(broken)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    convert(FILES / "checkpoint.pt", tmp_path / "a.dp")
    with h5py.File(tmp_path / "a.dp") as file:
        offset = file["variable_0004"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "a.dp").read_bytes())
    content[offset + 3] ^= 1
    (tmp_path / "a.dp").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_potential(tmp_path / "a.dp")


@pytest.mark.parametrize(
    ("suffix", "old", "new"), [(".dp", b'"rcut":4.0', b'"rcut":4.5'), (".yaml", b"rcut: 4", b"rcut: 5")]
)
def test_a_changed_option_is_noticed(tmp_path: Path, suffix: str, old: bytes, new: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    convert(FILES / "checkpoint.pt", path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match="changed after dpa1 wrote it"):
        load_potential(path)


@pytest.mark.parametrize("name", ["a.dp", "a.yaml", "a.pt", "a.dpa1", "a", "a.xyz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"key: [1, 2]\n", b"\x00" * 100, b"PK\x03\x04nothing"])
def test_what_is_no_model(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_potential(tmp_path / name)


def test_other_hdf5_files_and_backends(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["coord"] = [1.0]
    with pytest.raises(UserError, match="without a DeePMD-kit model"):
        load_potential(tmp_path / "data.h5")
    (tmp_path / "graph.pb").write_bytes(b"\x0a\x0b\x0c" * 10)
    with pytest.raises(UserError, match="dp convert-backend"):
        load_potential(tmp_path / "graph.pb")
    with pytest.raises(UserError, match="folder"):
        load_potential(tmp_path)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    convert(FILES / "checkpoint.pt", tmp_path / "a.dp")
    (tmp_path / "a.dp").rename(tmp_path / "a.pt")
    frame, expected = numbers("checkpoint")
    assert_same(computed(load_potential(tmp_path / "a.pt"), frame), expected, 1e-12)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("type",), "linear", "standard energy models"),
        (("descriptor", "type"), "se_e2_a", "only DPA-1"),
        (("descriptor", "lmax"), 3, "lmax"),
        (("descriptor", "compress"), {"geo_compress": True}, "compressed"),
        (("descriptor", "env_mat", "use_exp_switch"), True, "use_exp_switch"),
        (("fitting", "exclude_types"), [1], "exclude_types"),
        (("fitting", "numb_fparam"), 1, "numb_fparam"),
        (("descriptor", "embeddings"), {}, "not laid out"),
        (("descriptor", "@variables", "davg"), np.zeros((1, 2, 4)), "do not fit"),
    ],
)
def test_what_neutral_files_may_not_hold(path: tuple[str, ...], value: object, words: str) -> None:
    from dpa1.interop.export import to_neutral

    data = to_neutral(random_potential(DEEPMD), "model")
    section = data["model"]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(UserError, match=words):
        from_neutral(data, "model")


def test_files_of_the_first_version_have_a_type_bias(tmp_path: Path) -> None:
    from dpa1.interop.export import to_neutral

    potential = random_potential(DEEPMD | {"type_embedding_bias": True})
    data = to_neutral(potential, "model")
    del data["model"]["descriptor"]["use_tebd_bias"]
    write_neutral(data, tmp_path / "a.dp")
    assert from_neutral(read_neutral(tmp_path / "a.dp"), "a").config.type_embedding_bias


def test_command(tmp_path: Path) -> None:
    app = Typer()
    register(app)
    done = CliRunner().invoke(app, [str(FILES / "multitask.pt"), str(tmp_path / "a.dpa1"), "--branch", "ice"])
    assert done.exit_code == 0, done.output
    assert load_model(tmp_path / "a.dpa1").levels == ("ice",)
