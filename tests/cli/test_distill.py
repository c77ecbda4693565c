"""``dpa1 distill`` as a person calls it: every kind of teacher, and what people get wrong."""

import json
import shutil

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read, write

import dpa1.distill
from dpa1.distill import distill, speeds, table
from dpa1.errors import RunError, UserError
from dpa1.frames import from_ase
from dpa1.model.file import load_model, save_model
from dpa1.model.potential import Potential
from tests.cli.common import assert_refused, call, spawn
from tests.training.test_finetune import small
from tests.training.toy import emt_frames


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "new.xyz", emt_frames(12))
    return tmp_path / "new.xyz"


@pytest.fixture
def base(tmp_path):
    save_model(small(), tmp_path / "base.dpa1")
    return tmp_path / "base.dpa1"


def _calls(monkeypatch):
    """Count what the teacher is asked, so that a mistake is found before an expensive teacher computes."""
    asked = []
    label = dpa1.distill.label
    monkeypatch.setattr(dpa1.distill, "label", lambda teacher, frame: asked.append(frame) or label(teacher, frame))
    return asked


def test_a_function_in_this_folder(tmp_path, data):
    (tmp_path / "my_teacher.py").write_text(
        "from ase.calculators.lj import LennardJones\n"
        "def make_calculator():\n    return LennardJones(sigma=2.3, epsilon=0.3, rc=5.0)\n"
    )
    arguments = ("--steps", 2, "--cutoff", 4, "--output", "out")
    done = spawn("distill", "python:my_teacher.make_calculator", "new.xyz", *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "12/12 structures" in done.err
    found = json.loads((tmp_path / "out" / "distilled.json").read_text())
    assert set(found["seconds_per_call"]) == {"teacher", "student", "tabulated"}
    assert found["student_against_teacher"]["force_rmse"] > 0
    # The labels of a Lennard-Jones teacher, virial included, not those that came with the structures.
    frame = read(tmp_path / "out" / "train.xyz")
    again = frame.copy()
    again.calc = LennardJones(sigma=2.3, epsilon=0.3, rc=5.0)
    assert np.allclose(frame.get_forces(), again.get_forces(), atol=1e-6)
    assert np.allclose(frame.get_stress(), again.get_stress(), atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("none.dpa1", ["none.dpa1: no such file", "python:MODULE.FUNCTION"]),
        ("pyton:ase.calculators.emt.EMT", ["no such file", "python:MODULE.FUNCTION"]),
        ("python:EMT", ["looks like python:"]),
        ("python:ase.calculators.emt.EMTT", ["cannot be imported", "EMTT"]),
        ("python:broken_teacher.make", ["cannot be imported", "SyntaxError"]),
        ("python:ase.atoms.Atoms", ["Atoms", "no ASE calculator"]),
        ("python:math.pi", ["float", "no ASE calculator"]),
        ("python:ase.calculators.singlepoint.SinglePointCalculator", ["made no calculator", "without arguments"]),
    ],
)
def test_a_wrong_teacher(capsys, monkeypatch, data, tmp_path, teacher, words):
    (tmp_path / "broken_teacher.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert_refused(call(capsys, "distill", teacher, data, "--output", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_structures_that_do_not_fit(capsys, monkeypatch, base, data, tmp_path):
    asked = _calls(monkeypatch)
    out = ("--output", tmp_path / "out")
    assert_refused(call(capsys, "distill", base, tmp_path / "missing.xyz", *out), "missing.xyz")
    frames = emt_frames(12, seed=3)
    frames[5].symbols[2] = "Pt"
    write(tmp_path / "other.xyz", frames)
    assert_refused(call(capsys, "distill", base, tmp_path / "other.xyz", *out), "frame 5", "does not know Pt")
    # Nine different structures, some of them twice.
    write(tmp_path / "twice.xyz", [*emt_frames(9), *emt_frames(9)])
    assert_refused(call(capsys, "distill", base, tmp_path / "twice.xyz", *out), "9 structures (18 with", "at least 10")
    assert_refused(call(capsys, "distill", base, data, *out, "--level", "b"), "unknown level of theory 'b'")
    assert_refused(
        call(capsys, "distill", base, data, *out, "--augment", 1, "--rattle", 0, "--strain", 0), "teach nothing"
    )
    assert_refused(call(capsys, "distill", "python:ase.calculators.emt.EMT", data, *out, "--level", "b"), "--level")
    assert_refused(call(capsys, "distill", base, data, "--output", tmp_path), str(tmp_path))
    assert asked == []
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_two_levels_wants_a_name(capsys, data, tmp_path):
    save_model(small(("a", "b")), tmp_path / "two.dpa1")
    arguments = ("distill", tmp_path / "two.dpa1", data, "--output", tmp_path / "out", "--steps", 2)
    assert_refused(call(capsys, *arguments), "a, b")
    assert call(capsys, *arguments, "--level", "b").code == 0
    teacher = load_model(tmp_path / "two.dpa1").calculator(level="b")
    frame = read(tmp_path / "out" / "test.xyz")
    assert frame.get_potential_energy() == pytest.approx(teacher.get_potential_energy(frame.copy()), abs=1e-5)


def test_structures_given_twice_count_once(capsys, base, data, tmp_path):
    shutil.copy(data, tmp_path / "again.xyz")
    done = call(capsys, "distill", base, data, tmp_path / "again.xyz", "--output", tmp_path / "out", "--steps", 2)
    assert done.code == 0, done.err
    assert "12 of 24 structures were given twice" in done.out
    assert len(read(tmp_path / "out" / "train.xyz", ":")) == 11


class Broken(EMT):
    """A teacher that gives NaN forces from its third structure on."""

    count = 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        type(self).count += 1
        if type(self).count > 2:
            self.results["forces"] = self.results["forces"] * np.nan


def test_a_teacher_that_is_not_finite(tmp_path):
    with pytest.raises(RunError, match=r"structures, frame \d+: the teacher's energy, forces or stress are not finite"):
        distill(Broken(), emt_frames(12), output=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_python_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"the class EMT; give a calculator: EMT\(\)"):
        distill(EMT, emt_frames(12), output=tmp_path / "out")
    with pytest.raises(UserError, match="Atoms, no ASE calculator"):
        distill(bulk("Cu"), emt_frames(12), output=tmp_path / "out")
    with pytest.raises(UserError, match="one structure is too few"):
        distill(EMT(), bulk("Cu"), output=tmp_path / "out")
    with pytest.raises(UserError, match="must not be negative"):
        distill(EMT(), emt_frames(12), output=tmp_path / "out", rattle=-1.0)


def test_an_element_that_one_structure_has_is_not_held_back(tmp_path):
    frames = emt_frames(20, elements=("Cu",))
    for k, symbol in ((0, "Ag"), (1, "Au"), (2, "Pt"), (3, "Al")):
        frames[k].symbols[0] = symbol
    for seed in (1, 2):
        out = tmp_path / f"out{seed}"
        distill(EMT(), frames, output=out, steps=2, seed=seed, cutoff=4.0, quiet=True)
        known = {s for atoms in read(out / "train.xyz", ":") for s in atoms.symbols}
        assert known == {"Cu", "Ag", "Au", "Pt", "Al"}


def test_molecules_beside_crystals(tmp_path):
    """Frames without a volume have no virial; the others' virials are learned all the same."""
    rng = np.random.default_rng(0)
    places = np.array([[0, 0, 0], [2.4, 0, 0], [0, 2.4, 0]])
    molecules = [Atoms("Cu2Al", places + rng.normal(0, 0.2, (3, 3))) for _ in range(6)]
    result = distill(
        EMT(), [*emt_frames(12), *molecules], output=tmp_path / "out", augment=1, steps=2, cutoff=4.0, quiet=True
    )
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "virial:\n  - 0.1" in config
    assert "student against teacher" in table(result)


def test_an_expensive_calculator_is_not_asked_about_larger_cells():
    frames = [from_ase(atoms) for atoms in emt_frames(2)]
    _, atoms = speeds({"teacher": EMT()}, frames, repeat=False)
    assert atoms == 8
    _, atoms = speeds({"teacher": EMT()}, frames)
    assert atoms >= 200


def test_tables_that_cannot_be_made_are_said(monkeypatch, tmp_path):
    def fails(*args, **kwargs):
        raise RunError("no table is accurate enough")

    monkeypatch.setattr(Potential, "tabulated", fails)
    result = distill(EMT(), emt_frames(12), output=tmp_path / "out", steps=2, cutoff=4.0, quiet=True)
    assert set(result.seconds) == {"teacher", "student"}
    assert "no tables: no table is accurate enough" in table(result)
