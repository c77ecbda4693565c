"""Broken input gives one sentence with the remedy, never another exception and never fewer frames."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpa1.data.dataset import open_dataset
from dpa1.data.read import read
from dpa1.errors import UserError
from dpa1.frames import Frame
from tests.data.common import FILES, LABELLED, crystals, labelled, systems, write_as

GOOD = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 energy=1 pbc="T T T"\nCu 0 0 0 0 0 1\nAl 2 2 2 0 0 -1\n'

BROKEN = {
    "truncated": (GOOD + GOOD[:-20], "frame 1.*columns|truncated"),
    "short": (GOOD + GOOD.rsplit("Al", 1)[0], "frame 1.*truncated"),
    "only a number": (GOOD + "2\n", "frame 1.*truncated"),
    "not a number of atoms": (GOOD + GOOD.replace("2\n", "2x\n", 1), "frame 1.*number of atoms"),
    "too many lines": (GOOD + "Cu 0 0 0 0 0 1\n" + GOOD, "frame 1.*number of atoms"),
    "zero atoms": (GOOD + "0\n\n", "frame 1.*0 atoms"),
    "a column too few": (GOOD.replace("Cu 0 0 0 0 0 1", "Cu 0 0 0 0 1"), "atom 0 has 6 columns, expected 7"),
    "nan energy": (GOOD.replace("energy=1", "energy=nan"), "frame 0: NaN or infinite energy"),
    "infinite force": (GOOD.replace("0 0 -1", "0 0 inf"), "infinite forces of atom 1"),
    "nan position": (GOOD.replace("Al 2 2 2", "Al 2 nan 2"), "NaN or infinite positions of atom 1"),
    "text for a number": (GOOD.replace("Al 2 2 2", "Al 2 two 2"), "pos of atom 1 is 'two'"),
    "text forces": (GOOD.replace("forces:R:3", "forces:S:3").replace("-1", "down"), "frame 0: forces = .* is not a number"),
    "text energy": (GOOD.replace("energy=1", "energy=low"), "energy = 'low' is not a number"),
    "zero volume": (GOOD.replace("0 4 0 0 0 4", "0 4 0 0 4 0"), "zero volume"),
    "zero cell": (GOOD.replace("4 0 0 0 4 0 0 0 4", "0 0 0 0 0 0 0 0 0"), "cell vector is zero"),
    "wrong lattice": (GOOD.replace("4 0 0 0 4 0 0 0 4", "4 0 0 0 4"), "Lattice has 5 numbers"),
    "wrong pbc": (GOOD.replace("T T T", "yes"), "pbc = 'yes'"),
    "unknown element": (GOOD.replace("Cu 0", "Cv 0"), "atom 0 has the unknown element symbol 'Cv'.*did you mean"),
    "virial of five": (GOOD.replace("energy=1", 'energy=1 virial="1 2 3 4 5"'), "virial has shape"),
    "stress of nan": (GOOD.replace("energy=1", 'stress="nan 0 0 0 0 0"'), "stress is NaN"),
    "properties": (GOOD.replace("pos:R:3", "pos:R:x"), "Properties"),
    "no positions": (GOOD.replace("pos:R:3", "loc:R:3"), "pos"),
    "two energies": (GOOD.replace("energy=1", 'energy="1 2"'), "energy have shape"),
    "negative weight": (GOOD.replace("energy=1", "config_weight=-1"), "weight is -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_extended_xyz(name, tmp_path):
    text, sentence = BROKEN[name]
    path = tmp_path / "train.xyz"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read(path)
    assert "train.xyz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_empty(tmp_path):
    (tmp_path / "train.xyz").write_text(GOOD)
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "OUTCAR").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("nothing to see")
    for path, sentence in (
        ("trian.xyz", "did you mean 'train.xyz'"), ("empty.xyz", "no frames"), ("empty", "nothing to read"),
        ("OUTCAR", "empty"), ("notes.txt", "not recognised"), ("*.extxyz", "matches"), ("none.h5#/a", "no such file"),
        ("a\0b", "path"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / path if "\0" not in path else path)
    with pytest.raises(UserError, match="no data given"):
        read([])


def test_a_label_the_loss_asks_for(tmp_path):
    (tmp_path / "a.xyz").write_text(GOOD)
    dataset = open_dataset(tmp_path / "a.xyz")
    dataset.require(["energy", "forces"])
    with pytest.raises(UserError, match=r"no frame has virial.*data\.labels"):
        dataset.require(["energy", "virial"])


def attempt(path: Path) -> list[Frame] | None:
    """The frames, or None after an error in one sentence; any other exception is a failure."""
    try:
        return read(path)
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence
    return None


def damaged_npy(folder: Path, name: str, change) -> Path:
    (root,) = folder.rglob("set.000")
    np.save(root / f"{name}.npy", change(np.load(root / f"{name}.npy")))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("coord", lambda a: a[:, :-3], "coord.npy: has shape"),
        ("coord", lambda a: a * np.nan, "positions of atom 0"),
        ("box", lambda a: a[:, :6], "box.npy: has shape"),
        ("box", lambda a: a * 0, "cell vector is zero"),
        ("energy", lambda a: np.repeat(a, 2), "energy.npy: has shape"),
        ("energy", lambda a: a * np.inf, "energy"),
        ("force", lambda a: a[:, :-1], "force has"),
        ("virial", lambda a: a[:, :8], "virial has shape"),
        ("coord", lambda a: a[:0], "no frames|shape"),
        ("energy", lambda a: np.array([{}], dtype=object), "energy.npy: is no readable"),
    ],
)
def test_broken_npy(name, change, sentence, tmp_path):
    systems(crystals(1)).to("deepmd/npy", str(tmp_path / "data"))
    with pytest.raises(UserError, match=sentence):
        read(damaged_npy(tmp_path, name, change))


def test_broken_system_folders(tmp_path):
    systems(crystals(1)).to("deepmd/npy", str(tmp_path / "good"))
    (folder,) = (tmp_path / "good").iterdir()
    for k, (change, sentence) in enumerate((
        (lambda p: (p / "type.raw").write_text("0 0 a 1"), "type.raw is not a list"),
        (lambda p: (p / "type.raw").write_text(""), "type.raw is empty"),
        (lambda p: (p / "type.raw").write_text("0 0 0 7"), "atom 3 has type 7"),
        (lambda p: (p / "type.raw").write_text("0 0 0"), "does not fit"),
        (lambda p: (p / "type_map.raw").write_text("Al\nCv"), "'Cv'.*no element"),
        (lambda p: shutil.rmtree(p / "set.000"), "no set"),
        (lambda p: (p / "set.000" / "coord.npy").unlink(), "no coord.npy"),
        (lambda p: (p / "set.000" / "box.npy").unlink(), "nopbc"),
    )):  # fmt: skip
        copy = tmp_path / f"bad{k}"
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(UserError, match=sentence):
            read(copy)


def test_formats_that_hide_a_cut_end(tmp_path):
    steps = [crystals(1)[0]] * 3
    steps = [labelled(a[np.argsort(a.get_chemical_symbols(), kind="stable")]) for a in steps]
    outcar = write_as("OUTCAR", steps, tmp_path)
    assert len(read(outcar)) == 3
    whole = outcar.read_text()
    for part in (whole[: whole.rindex("TOTAL-FORCE") + 200], whole[: whole.rindex("Iteration") + 40],
                 whole[: whole.rindex("energy  without")]):  # fmt: skip
        outcar.write_text(part)
        with pytest.raises(UserError, match=r"OUTCAR.*truncated"):
            read(outcar)
    (tmp_path / "vasprun.xml").write_text('<?xml version="1.0"?>\n<modeling>\n<calculation>')
    with pytest.raises(UserError, match="</modeling>"):
        read(tmp_path / "vasprun.xml")


def test_dump_without_elements(tmp_path):
    (tmp_path / "run.dump").write_text(
        "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 4\n0 4\n0 4\n"
        "ITEM: ATOMS id type x y z\n1 1 0 0 0\n"
    )
    with pytest.raises(UserError, match="element column"):
        read(tmp_path / "run.dump")


def whole_file(kind: str, folder: Path) -> tuple[Path, Path]:
    """(what to read, the file to damage)."""
    images = crystals(3)
    if kind == "OUTCAR":
        images = [labelled(images[0][np.argsort(images[0].get_chemical_symbols(), kind="stable")])] * 3
    path = write_as(kind, images, folder)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and p.name not in ("lock.mdb", "formal_charge.npy")]
        return path, max(files, key=lambda p: (p.name == "data.mdb", p.name == "coord.npy"))
    return path, path


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {kind: whole_file(kind, folder / kind.replace("/", "_")) for kind in LABELLED}


@pytest.mark.parametrize("kind", LABELLED)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 1))
def test_truncated_anywhere(kind, originals, share):
    """A shorter file is an error, or – where only trailing blanks or unused bytes are missing – still all of it."""
    path, file = originals[kind]
    expected = len(read(path))
    whole = file.read_bytes()
    try:
        cut = int(share * len(whole))
        file.write_bytes(whole[:cut])
        frames = attempt(path)
        if frames is not None:
            # Extended XYZ has no end mark: a cut exactly between two frames leaves a good, shorter file.
            between = kind == "xyz" and b"\n" in whole[cut - 1 : cut + 1]
            assert len(frames) == expected or (between and len(frames) < expected)
    finally:
        file.write_bytes(whole)


# A flipped bit inside the pages of an LMDB tree may end the process in LMDB itself, so it is not tried.
@pytest.mark.parametrize("kind", [kind for kind in LABELLED if kind != "deepmd/lmdb"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_flipped_bit_anywhere(kind, originals, place, bit):
    """An error in one sentence, or frames: formats without checksums cannot tell every flip."""
    path, file = originals[kind]
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    try:
        file.write_bytes(bytes(damaged))
        frames = attempt(path)
        if frames is not None:
            for frame in frames:
                assert np.isfinite(frame.positions).all()
                assert len(frame) > 0
    finally:
        file.write_bytes(whole)


def test_flipped_bit_in_a_store_is_always_found(tmp_path):
    path = write_as("store", crystals(3), tmp_path)
    whole = path.read_bytes()
    expected = read(path)
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(bytes(damaged))
        try:
            frames = read(path)
        except UserError:
            continue
        # Only the unused bytes of the head are not covered.
        assert 12 <= place < 16
        for frame, other in zip(frames, expected, strict=True):
            np.testing.assert_array_equal(frame.positions, other.positions)


@given(data=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize(
    "name", ["a.xyz", "a.xyz.gz", "a.xyz.xz", "a.xyz.zst", "a.h5", "a.lmdb", "a.traj", "a.db", "OUTCAR", "a.json", "x"]
)
def test_bytes_that_are_no_data(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(data)
    attempt(path)


@given(text=st.text(alphabet=st.sampled_from('0123456789.- eE"=[]{}\\\nTFCuH:SRpos'), max_size=120))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_comment_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("comment") / "a.xyz"
    path.write_text("1\n" + text.replace("\n", " ") + "\nH 0 0 0\n")
    attempt(path)


def test_two_atoms_on_one_spot_are_reported(tmp_path):
    from dpa1.data.check import check

    (tmp_path / "a.xyz").write_text(GOOD + GOOD.replace("Al 2 2 2", "Al 0 0 4.001"))
    result = check(tmp_path / "a.xyz")
    assert len(result.errors) == 1
    assert "frame 1: atoms 0 and 1" in result.errors[0]


def test_double_ended_gzip(tmp_path):
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress(GOOD.encode()) * 2)
    assert len(read(tmp_path / "a.xyz.gz")) == 2
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "a.xyz.gz")


def test_store_refuses_to_overwrite_and_leaves_no_half(tmp_path):
    from dpa1.data.pack import pack

    (tmp_path / "a.xyz").write_text(GOOD + GOOD[:-20])
    with pytest.raises(UserError, match="frame 1"):
        pack(tmp_path / "a.xyz", tmp_path / "a.dpa1data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.xyz"]
    (tmp_path / "a.xyz").write_text(GOOD)
    assert pack(tmp_path / "a.xyz", tmp_path / "a.dpa1data")[0] == 1
    before = (tmp_path / "a.dpa1data").read_bytes()
    with pytest.raises(UserError, match="not overwritten"):
        pack(tmp_path / "a.xyz", tmp_path / "a.dpa1data")
    assert (tmp_path / "a.dpa1data").read_bytes() == before
    with pytest.raises(UserError, match="create it first"):
        pack(tmp_path / "a.xyz", tmp_path / "no" / "a.dpa1data")


def test_no_pickle_is_executed(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    systems(crystals(1)).to("deepmd/npy", str(tmp_path / "data"))
    (folder,) = tmp_path.rglob("set.000")
    (folder / "energy.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.traj", "a.db", "a.xyz", "a.h5", "a.lmdb", "a.pckl", "a.bundle"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError):
            read(tmp_path / name)
    with pytest.raises(UserError, match=r"energy\.npy"):
        read(tmp_path / "data")
    assert not (tmp_path / "executed").exists()


def test_real_file_cut_between_frames_is_shorter_but_whole(tmp_path):
    text = (FILES / "mlearn_Ge.xyz").read_text()
    n = int(text.split("\n", 1)[0])
    lines = text.splitlines(keepends=True)
    (tmp_path / "a.xyz").write_text("".join(lines[: n + 2]))
    assert len(read(tmp_path / "a.xyz")) == 1


def test_database_values(tmp_path):
    from ase.db import connect

    atoms = bulk("Cu")
    with connect(tmp_path / "a.db") as database:
        database.write(atoms, REF_energy=-3.0, data={"REF_forces": np.ones((1, 3))})
    (frame,) = read(tmp_path / "a.db")
    assert frame.energy == -3.0
    assert frame.forces.tolist() == [[1, 1, 1]]
    write(tmp_path / "b.db", atoms)
    assert read(tmp_path / "b.db")[0].energy is None
