"""Every bad call gets one sentence that names the culprit, exit code 2, and leaves everything as it was."""

import io
import json
import os
import pickle
import zipfile

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dpa1.container import read_container, write_container
from tests.cli.common import assert_refused, call, spawn


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def with_bytes(path, change):
    def make(model, folder):
        content = bytearray(model.read_bytes())
        target = folder / path
        target.write_bytes(bytes(change(content)))
        return target

    return make


def flip(content):
    content[-50] ^= 4
    return content


def flip_header(content):
    content[40] ^= 1
    return content


def newer(model, folder):
    version, header, tensors = read_container(model, "model", 10**6)
    path = folder / "newer.dpa1"
    write_container(path, "model", version + 7, header, tensors)
    return path


def checkpoint(model, folder):
    path = folder / "checkpoint.dpa1"
    write_container(path, "checkpoint", 1, {}, {})
    return path


def text(model, folder):
    path = folder / "notes.dpa1"
    path.write_text("these are my notes, not a model\n" * 20)
    return path


def empty(model, folder):
    path = folder / "empty.dpa1"
    path.write_bytes(b"")
    return path


def missing(model, folder):
    return folder / "missing.dpa1"


def pickled(model, folder):
    path = folder / "pickled.dpa1"
    path.write_bytes(pickle.dumps(Bomb(folder / "boom")))
    return path


def torch_archive(name):
    def make(model, folder):
        path = folder / name
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(folder / "boom"), protocol=2))
            archive.writestr("archive/version", "3\n")
        path.write_bytes(buffer.getvalue())
        return path

    return make


BAD_MODELS = {
    "missing": missing,
    "empty": empty,
    "text": text,
    "folder": lambda model, folder: folder,
    "truncated": with_bytes("half.dpa1", lambda content: content[: len(content) // 2]),
    "bit in the tensors": with_bytes("flipped.dpa1", flip),
    "bit in the header": with_bytes("flipped2.dpa1", flip_header),
    "newer": newer,
    "checkpoint": checkpoint,
    "pickle": pickled,
    "pickle as .pt": torch_archive("model.pt"),
    "pickle as .dpa1": torch_archive("model.dpa1"),
    "yaml": with_bytes("half.yaml", lambda content: b"a: [1, 2"),
    "hdf5": with_bytes("half.dp", lambda content: b"\x89HDF\r\n\x1a\n" + bytes(200)),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models(kind, model, structure, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = BAD_MODELS[kind](model, tmp_path)
    before = sorted(tmp_path.iterdir())
    name = str(bad)
    assert_refused(call(capsys, "show", bad), name)
    assert_refused(call(capsys, "md", bad, structure, "--temperature", 300, "--steps", 1), name)
    assert sorted(tmp_path.iterdir()) == before  # nothing executed, nothing written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("md", "{model}", "{structure}", "--steps", "5"), ("--temperature",)),
        (("md", "{model}", "{structure}", "--temperature", "300"), ("--steps",)),
        (("md", "{model}", "{structure}", "--temperature", "-3", "--steps", "5"), ("temperature", "greater than 0")),
        (("md", "{model}", "{structure}", "--temperature", "nan", "--steps", "5"), ("temperature",)),
        (("md", "{model}", "{structure}", "--temperature", "300", "--steps", "5", "--ensemble", "nvu"), ("ensemble",)),
        (("md", "{model}", "{structure}", "--temperature", "300", "--steps", "5", "--timestep", "0"), ("timestep",)),
        (("md", "{model}", "{structure}", "--temperature", "300", "--steps", "5", "--dtype", "half"), ("dtype",)),
        (("md", "{model}", "{structure}", "--temperature", "300", "--steps", "5", "--device", "cuda:9"), ("cuda:9",)),
        (("md", "{model}", "{structure}", "--temperature", "300", "--steps", "5", "--level", "x"), ("level",)),
        (("md", "{model}", "none.xyz", "--temperature", "300", "--steps", "5"), ("none.xyz", "no such file")),
        (("md", "{model}", "{structure}", "--steps", "5", "--resume"), ("copper-md", "no run to resume")),
        (("relax", "{model}", "{structure}", "--fmax", "0"), ("--fmax",)),
        (("relax", "{model}", "{structure}", "--optimizer", "fier"), ("did you mean 'fire'",)),
        (("relax", "{model}", "{structure}", "--pressure", "1"), ("--cell",)),
        (("relax", "{model}", "{structure}", "--output", "no/where.xyz"), ("no/where.xyz",)),
        (("relax", "{model}", "{structure}", "--output", "relaxed.blob"), ("relaxed.blob", "relaxed.xyz")),
        (("relax", "{model}", "{structure}", "--output", "{structure}"), ("already exists",)),
        (("evaluate", "{model}", "none.xyz"), ("none.xyz",)),
        (("evaluate", "{model}", "{structure}"), ("none of the 1 frames",)),
        (("evaluate", "{model}", "{structure}", "--dtype", "bfloat16"), ("bfloat16",)),
    ],
)
def test_bad_calls(arguments, words, model, structure, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = call(capsys, *(a.format(model=model, structure=structure) for a in arguments))
    assert_refused(result, *words)
    assert list(tmp_path.iterdir()) == []


def structures(kind):
    atoms = bulk("Cu", cubic=True)
    if kind == "element":
        atoms.symbols[2] = "Au"
        return atoms, ("frame 0", "does not know Au", "H, O, Cu")
    if kind == "one spot":
        atoms.positions[3] = atoms.positions[1] + 0.001
        return atoms, ("atoms 1 and 3",)
    if kind == "flat cell":
        atoms.cell[2] = atoms.cell[1]
        return atoms, ("zero volume",)
    if kind == "nan":
        atoms.positions[1, 2] = float("nan")
        return atoms, ("atom 1",)
    return [atoms, atoms], ("holds 2 structures", "--index")


@pytest.mark.parametrize("kind", ["element", "one spot", "flat cell", "nan", "several"])
def test_bad_structures(kind, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    atoms, words = structures(kind)
    write("bad.xyz", atoms)
    for verb in (("md", model, "bad.xyz", "--temperature", 300, "--steps", 5), ("relax", model, "bad.xyz")):
        assert_refused(call(capsys, *verb), "bad.xyz", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.xyz"]


@pytest.mark.parametrize("content", ["", "4\nhalf\nCu 0 0 0\n", "\x00\x01\x02", "5\n"])
def test_unreadable_structures(content, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.xyz").write_text(content)
    assert_refused(call(capsys, "relax", model, "bad.xyz"), "bad.xyz")


def test_outputs_are_never_overwritten(model, data, structure, tmp_path, capsys):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "precious").write_text("years of work")
    assert_refused(call(capsys, "evaluate", model, data / "a.xyz", "--output", folder), "old", "--output")
    run = ("md", model, structure, "--temperature", 300, "--steps", 2, "--output", folder)
    assert_refused(call(capsys, *run), "old", "--output")
    assert [path.name for path in folder.iterdir()] == ["precious"]
    assert_refused(call(capsys, "evaluate", model, data / "a.xyz", "--output", folder / "precious"), "is a file")


def test_slab_has_no_pressure(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = (True, True, False)
    write("slab.xyz", atoms)
    npt = ("md", model, "slab.xyz", "--temperature", 300, "--steps", 2, "--pressure", 0)
    result = call(capsys, *npt)
    assert result.code == 2
    assert "periodic in all three directions" in result.err
    assert_refused(call(capsys, "relax", model, "slab.xyz", "--cell"), "periodic in all three")
    assert [path.name for path in tmp_path.iterdir()] == ["slab.xyz"]


def test_evaluate_names_the_frame_with_an_unknown_element(model, tmp_path, capsys):
    frames = [bulk("Cu", cubic=True), Atoms("Au2", [[0, 0, 0], [0, 0, 2.6]])]
    for atoms in frames:
        atoms.info["energy"] = 1.0
    write(tmp_path / "mixed.xyz", frames)
    out = tmp_path / "out"
    assert_refused(call(capsys, "evaluate", model, tmp_path / "mixed.xyz", "--output", out), "mixed.xyz, frame 1", "Au")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mixed.xyz"]


def test_usage_errors_and_help_of_a_real_process(model, tmp_path):
    assert spawn("--version", cwd=tmp_path).out.startswith("dpa1 ")
    assert spawn("frobnicate", cwd=tmp_path).code == 2
    assert spawn("show", cwd=tmp_path).code == 2
    missing = spawn("show", "missing.dpa1", cwd=tmp_path)
    assert_refused(missing, "missing.dpa1: no such file")
    card = spawn("show", model, "--json", cwd=tmp_path)
    assert json.loads(card.out)["elements"] == ["H", "O", "Cu"]
