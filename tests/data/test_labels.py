"""Labels are found as people write them, with the right sign, and the mapping wins."""

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa1.data.labels import choose
from dpa1.data.read import read
from dpa1.data.report import LabelReport
from dpa1.errors import UserError
from tests.data.common import crystals, strain_derivative


def one_frame(comment: str, columns: str = "species:S:1:pos:R:3", row: str = "Cu 0 0 0") -> str:
    return f'1\nLattice="4 0 0 0 4 0 0 0 4" Properties={columns} {comment}\n{row}\n'


@pytest.mark.parametrize(
    "key", ["energy", "REF_energy", "dft_energy", "E", "free_energy", "TotEnergy", "Energy", "energy_dft", "total_energy",
            "ref-energy", "DFT_Total_Energy", "potential_energy"],
)  # fmt: skip
def test_energy_names(key, tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame(f"{key}=-3.5"))
    assert read(tmp_path / "a.xyz")[0].energy == -3.5


@pytest.mark.parametrize("key", ["forces", "force", "REF_forces", "dft_forces", "F", "Forces", "forces_ref"])
def test_force_names(key, tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame("energy=1", f"species:S:1:pos:R:3:{key}:R:3", "Cu 0 0 0 1 2 3"))
    assert read(tmp_path / "a.xyz")[0].forces.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("key", ["virial", "virials", "REF_virial", "dft_virials"])
def test_virial_is_taken_as_it_is(key, tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame(f'{key}="1 2 3 2 4 5 3 5 6"'))
    np.testing.assert_array_equal(read(tmp_path / "a.xyz")[0].virial, [[1, 2, 3], [2, 4, 5], [3, 5, 6]])


@pytest.mark.parametrize("value", ["1 6 5 6 2 4 5 4 3", "1 2 3 4 5 6", "[[1,6,5],[6,2,4],[5,4,3]]"])
@pytest.mark.parametrize("key", ["stress", "REF_stress", "dft_stress"])
def test_stress_becomes_virial(key, value, tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame(f'{key}="{value}"'))
    expected = -64.0 * np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    np.testing.assert_allclose(read(tmp_path / "a.xyz")[0].virial, expected)


def test_reference_labels_come_before_bare_ones():
    assert choose(("energy", "REF_energy", "dft_energy", "free_energy"), ()) == {
        "energy": ("REF_energy", "dft_energy", "energy", "free_energy")
    }


def test_mapping_wins_and_must_be_found(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(one_frame("energy=1 odd=2") + one_frame("energy=3"))
    frames = read(path, {"energy": "odd"})
    assert [frame.energy for frame in frames] == [2.0, None]
    with pytest.raises(UserError, match=r"'od'.*did you mean 'odd'"):
        read(path, {"energy": "od"})
    with pytest.raises(UserError, match="did you mean 'energy'"):
        read(path, {"enrgy": "odd"})


@pytest.mark.parametrize("suffix", ["traj", "db"])
def test_info_arrays_and_calculator_of_ase(suffix, tmp_path):
    images = crystals(2)
    for atoms in images:
        results = atoms.calc.results
        atoms.calc = SinglePointCalculator(atoms, energy=99.0, forces=np.zeros((4, 3)))
        if suffix == "traj":
            atoms.info["REF_energy"] = results["energy"]
        else:
            atoms.calc = SinglePointCalculator(atoms, **results)
    write(tmp_path / f"a.{suffix}", images)
    expected = crystals(2)
    for frame, atoms in zip(read(tmp_path / f"a.{suffix}"), expected, strict=True):
        # a trajectory keeps info, but no arrays of other names
        if suffix == "db":
            np.testing.assert_allclose(frame.forces, atoms.calc.results["forces"])
        assert frame.energy == pytest.approx(atoms.calc.results["energy"])


def test_both_virial_and_stress(tmp_path):
    atoms = crystals(1)[0]
    virial = strain_derivative(atoms)
    report = LabelReport()
    for name, stress in (("right", -virial / atoms.get_volume()), ("flipped", virial / atoms.get_volume()),
                         ("gpa", -160.2177 * virial / atoms.get_volume())):  # fmt: skip
        atoms.calc = None
        text = " ".join(f"{x:.12g}" for x in stress.ravel())
        other = " ".join(f"{x:.12g}" for x in virial.ravel())
        write(tmp_path / f"{name}.xyz", atoms, format="extxyz")
        lines = (tmp_path / f"{name}.xyz").read_text().splitlines()
        lines[1] += f' stress="{text}" virial="{other}"'
        (tmp_path / f"{name}.xyz").write_text("\n".join(lines) + "\n")
        (frame,) = read(tmp_path / f"{name}.xyz", report=report)
        np.testing.assert_allclose(frame.virial, virial, atol=1e-9)
    notes = [" ".join(source.notes) for source in report.sources]
    assert notes[0] == ""
    assert "opposite sign" in notes[1]
    assert "GPa" in notes[2]


def test_weights_levels_and_isolated_atoms(tmp_path):
    (tmp_path / "a.xyz").write_text(
        '1\nProperties=species:S:1:pos:R:3 energy=-13.6 config_type=IsolatedAtom config_weight=2.5 level=pbe pbc="F F F"\n'
        "H 0 0 0\n2\njust a comment\nH 0 0 0\n8 0 0 1\n"
    )
    atom, plain = read(tmp_path / "a.xyz")
    assert (atom.energy, atom.weight, atom.level, atom.pbc.any()) == (-13.6, 2.5, "pbe", False)
    assert plain.numbers.tolist() == [1, 8]
    assert plain.energy is None


def test_stress_without_a_volume_is_noted(tmp_path):
    (tmp_path / "a.xyz").write_text('1\nProperties=species:S:1:pos:R:3 energy=1 stress="0 0 0 0 0 0"\nH 0 0 0\n')
    report = LabelReport()
    assert read(tmp_path / "a.xyz", report=report)[0].virial is None
    assert "without a volume" in str(report)


def test_report_tells_what_was_taken(tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame("REF_energy=1 energy=2") + one_frame("REF_energy=1"))
    report = LabelReport()
    read(tmp_path / "a.xyz", report=report)
    assert "'REF_energy' in all (eV)" in str(report)
    assert "not used: energy" in str(report)
    assert report.as_dict()[0]["taken"] == {"energy": {"REF_energy": 2}}


def test_other_spellings_of_the_reserved_keys(tmp_path):
    text = '1\nlattice="4 0 0 1 4 0 0 0 4" properties=species:S:1:pos:R:3:force:R:3 PBC="T T F" energy=1\r\nCu 0 0 0 1 2 3\n'
    (tmp_path / "a.xyz").write_text(text)
    (frame,) = read(tmp_path / "a.xyz")
    assert frame.cell.tolist() == [[4, 0, 0], [1, 4, 0], [0, 0, 4]]
    assert frame.pbc.tolist() == [True, True, False]
    assert frame.forces.tolist() == [[1, 2, 3]]


def test_a_single_letter_counts_only_when_it_fits(tmp_path):
    (tmp_path / "a.xyz").write_text(one_frame('E="0 0 1"') + one_frame("E=-2"))
    assert [frame.energy for frame in read(tmp_path / "a.xyz")] == [None, -2.0]


def test_unnamed_columns_are_noted(tmp_path):
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0 1 2 3\n")
    report = LabelReport()
    assert read(tmp_path / "a.xyz", report=report)[0].forces is None
    assert "not used" in str(report)
