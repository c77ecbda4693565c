"""Test frames that are training frames in disguise, and frames that only look alike."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.io import write

from dpa1.config.run import config_from
from dpa1.data.dataset import ListDataset
from dpa1.data.overlap import check_overlap, hold_out, overlap
from dpa1.errors import UserError
from dpa1.frames import make_frame
from dpa1.training.prepare import open_checked
from dpa1.training.run import train
from tests.training.toy import emt_frames, toy_config


def dataset(frames, source="some.xyz"):
    return ListDataset(
        [
            make_frame(a.numbers, a.positions, a.cell.array, a.pbc, energy=float(k), source=source, index=k)
            for k, a in enumerate(frames)
        ]
    )


def alloy(seed, amplitude=0.1, pbc=True):
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.symbols[::3] = "O"
    atoms.set_cell(atoms.cell.array + np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]]), scale_atoms=True)
    atoms.rattle(amplitude, seed=seed)
    atoms.pbc = pbc
    return atoms


def disguised(atoms, seed=0):
    """The same structure: turned, shifted, wrapped by cell vectors, in another order."""
    rng = np.random.default_rng(seed)
    other = atoms[rng.permutation(len(atoms))]
    other.positions += rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    other.positions += rng.normal(size=3)
    other.rotate(40, (1, 2, 3), rotate_cell=True)
    return other


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_disguises_are_seen(pbc):
    train = [alloy(seed, pbc=pbc) for seed in range(6)]
    found = overlap(dataset(train), dataset([disguised(train[4], 1), alloy(9, pbc=pbc), disguised(train[2], 2)]))
    assert found == [(4, 0), (2, 2)]


def test_molecules_in_another_order():
    train = []
    for seed in range(4):
        train.append(molecule("CH3CH2OH"))
        train[-1].rattle(0.05, seed=seed)
    assert overlap(dataset(train), dataset([disguised(train[3])])) == [(3, 0)]


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_a_step_of_dynamics_is_another_frame(pbc):
    """Neighbouring frames of a trajectory, of which one atom moved by 0.01 Å."""
    atoms = alloy(0, pbc=pbc)
    moved = atoms.copy()
    moved.positions[3, 0] += 0.01
    assert overlap(dataset([atoms]), dataset([disguised(moved)])) == []


def test_exchanged_elements_and_strained_cells_are_other_frames():
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    one, two, strained = crystal.copy(), crystal.copy(), crystal.copy()
    one.symbols[[0, 1]], two.symbols[[0, 4]] = "Au", "Au"
    strained.set_cell(crystal.cell.array * 1.001, scale_atoms=True)
    assert overlap(dataset([one, crystal]), dataset([two, strained])) == []
    assert overlap(dataset([one, crystal]), dataset([disguised(two), disguised(crystal)])) == [(1, 1)]


def test_one_atom():
    atoms = Atoms("H", positions=[[0, 0, 0]])
    assert overlap(dataset([atoms]), dataset([atoms])) == [(0, 0)]


def test_refusal_names_file_and_frame():
    train = dataset([alloy(0), alloy(1)], "train.xyz")
    with pytest.raises(UserError, match=r"1 of 2 test frames are training frames.*test.xyz.*0.*= train.xyz.*1"):
        check_overlap(train, dataset([disguised(alloy(1)), alloy(5)], "test.xyz"), "test")


@pytest.mark.parametrize(("part", "name"), [("valid", "validation"), ("test", "test")])
def test_a_run_refuses_files_that_hold_training_frames(tmp_path, part, name):
    frames = emt_frames(6)
    write(tmp_path / "train.xyz", frames)
    write(tmp_path / "other.xyz", [*emt_frames(2, seed=5), frames[4]])
    with pytest.raises(UserError, match=rf"1 of 3 {name} frames.*other\.xyz, frame 2 = .*train\.xyz, frame 4"):
        train(toy_config(tmp_path, data={part: str(tmp_path / "other.xyz")}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_structure_may_be_tested_at_another_level_of_theory(tmp_path):
    """Of two levels each file is the other's: its labels at this level are not known from training."""
    sources = {}
    for seed in (1, 2):
        write(tmp_path / f"{seed}.xyz", emt_frames(4, seed=seed))
        sources[seed] = str(tmp_path / f"{seed}.xyz")
    data = {"train": [{"path": sources[1], "level": "a"}, {"path": sources[2], "level": "b"}], "valid": None}
    run = config_from(toy_config(tmp_path, data={**data, "test": [{"path": sources[1], "level": "b"}]}), "test")
    assert len(open_checked(run).test) == 4
    run = config_from(toy_config(tmp_path, data={**data, "test": [{"path": sources[2], "level": "b"}]}), "test")
    with pytest.raises(UserError, match="4 of 4 test frames"):
        open_checked(run)


TURNED = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("times", [(2, 1, 1), (1, 3, 2)])
def test_a_supercell_is_its_cell(times):
    """Whatever is the training frame, and also turned."""
    cells = [alloy(seed) for seed in range(3)]
    large = disguised(cells[1].repeat(times))
    assert overlap(dataset(cells), dataset([alloy(8), large])) == [(1, 1)]
    assert overlap(dataset([alloy(8).repeat(times), large]), dataset(cells)) == [(1, 1)]
    with pytest.raises(UserError, match=r"some\.xyz, frame 0 = some\.xyz, frame 1, repeated"):
        check_overlap(dataset(cells), dataset([large]), "test")


def test_a_supercell_along_other_vectors_is_its_cell():
    cell = alloy(0)
    large = make_supercell(cell, TURNED)
    assert len(large) == 2 * len(cell)
    large.positions += 0.3
    large.wrap()
    assert overlap(dataset([alloy(1), cell]), dataset([large])) == [(1, 0)]


def test_a_supercell_whose_atoms_moved_is_another_frame():
    """Also where one atom of the second half moved, or two elements changed places, which leaves composition and cell."""
    cell = alloy(0)
    moved, exchanged, rattled = (cell.repeat((2, 1, 1)) for _ in range(3))
    moved.positions[20, 1] += 0.01
    exchanged.symbols[[0, 1]] = exchanged.symbols[[1, 0]]
    rattled.rattle(0.1, seed=1)
    assert overlap(dataset([cell]), dataset([moved, exchanged, rattled])) == []
    # A repeated structure of the same composition and cell, but with another one in it.
    assert overlap(dataset([cell]), dataset([alloy(1).repeat((2, 1, 1))])) == []


def test_a_fraction_held_out_has_no_copies_of_training_frames():
    frames = [disguised(alloy(seed % 12), seed) for seed in range(24)]  # each twice
    whole = dataset(frames)
    assert overlap(*whole.split(0.3, 1))
    rest, held, copies = hold_out(whole, 0.3, 1)
    assert (len(rest), len(held), copies) == (16, 8, 12)  # 4 of 12 structures
    assert overlap(rest, held) == []
    assert {f.name for f in rest} | {f.name for f in held} == {f.name for f in whole}
    again = hold_out(dataset([alloy(seed) for seed in range(24)]), 0.3, 1)
    assert (len(again[1]), again[2]) == (7, 0)


def test_a_run_says_that_there_are_copies_and_refuses_when_all_are(tmp_path):
    write(tmp_path / "train.xyz", [a for a in emt_frames(4) for _ in range(3)])
    train(toy_config(tmp_path, data={"valid": 0.9}, training={"steps": 1}), quiet=True)
    text = (tmp_path / "run" / "train.log").read_text()
    assert "8 frames of the training data are copies of others" in text
    write(tmp_path / "train.xyz", emt_frames(1) * 6)
    with pytest.raises(UserError, match=r"'data\.valid' is 0\.5, but all 6 training frames are copies of one"):
        train(toy_config(tmp_path, data={"valid": 0.5}, output=str(tmp_path / "other")), quiet=True)
    assert not (tmp_path / "other").exists()


def test_a_supercell_of_a_training_frame_is_not_held_out():
    frames = [alloy(seed) for seed in range(12)]
    whole = dataset([*frames, *(a.repeat((2, 1, 1)) for a in frames)])
    rest, held, copies = hold_out(whole, 0.3, 1)
    assert (len(rest), len(held), copies) == (16, 8, 12)
    assert overlap(rest, held) == []
