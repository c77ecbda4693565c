"""How files are found behind what a person writes."""

import pytest
from ase.io import write

from dpa1.data.resolve import resolve
from dpa1.errors import UserError
from tests.data.common import crystals, systems, write_as


@pytest.fixture
def folder(tmp_path):
    images = crystals(2)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "run").mkdir(parents=True)
    write(tmp_path / "b" / "2.xyz", images, format="extxyz")
    write(tmp_path / "b" / "1.extxyz", images, format="extxyz")
    write(tmp_path / "b" / "notes.cif", images[0])
    write_as("OUTCAR", list(images[:1]), tmp_path / "a" / "run")
    (tmp_path / "a" / "run" / "vasprun.xml").write_text("the same run")
    systems(images[:1]).to("deepmd/npy", str(tmp_path / "c"))
    systems(images[:1]).to("deepmd/hdf5", str(tmp_path / "d.h5"))
    systems(images[:1]).to("deepmd/lmdb", str(tmp_path / "e.lmdb"))
    return tmp_path


def found(root, given: str) -> list[str]:
    return [f"{s.kind}:{s.path.relative_to(root)}" + (f"#{s.group}" if s.group else "") for s in resolve(root / given)]


def test_folders_are_searched_in_order_of_names(folder):
    assert found(folder, ".") == [
        "ase:a/run/OUTCAR", "extxyz:b/1.extxyz", "extxyz:b/2.xyz", "npy:c/Al1Cu3", "hdf5:d.h5", "lmdb:e.lmdb",
    ]  # fmt: skip


def test_patterns_groups_and_files(folder):
    assert found(folder, "b/*xyz") == ["extxyz:b/1.extxyz", "extxyz:b/2.xyz"]
    assert found(folder, "**/OUTCAR") == ["ase:a/run/OUTCAR"]
    assert found(folder, "d.h5#/Al1Cu3") == ["hdf5:d.h5#/Al1Cu3"]
    assert found(folder, "e.lmdb/data.mdb") == ["lmdb:e.lmdb/data.mdb"]
    assert found(folder, "b/notes.cif") == ["ase:b/notes.cif"]


def test_nothing_there(folder):
    (folder / "empty").mkdir()
    for given, sentence in (
        ("b/3.xyz", "did you mean '2.xyz'"),
        ("empty", "holds nothing"),
        ("q*", "matches"),
        ("emp*", "holds"),
    ):
        with pytest.raises(UserError, match=sentence):
            resolve(folder / given)
