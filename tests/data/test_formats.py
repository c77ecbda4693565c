"""Every format gives back the numbers that were written, with signs and units of the package."""

import dpdata
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from dpa1.data.read import read
from dpa1.data.report import LabelReport
from dpa1.errors import UserError
from dpa1.frames import Frame, to_ase
from tests.data.common import FILES, LABELLED, crystals, labelled, strain_derivative, systems, write_as


def same_frames(frames: list[Frame], images: list[Atoms], tolerance: float = 1e-7) -> None:
    """Compare as sets of frames and of atoms: DeePMD systems sort both."""
    assert len(frames) == len(images)
    waiting = list(frames)
    for atoms in images:
        frame = min(waiting, key=lambda f: abs(f.energy - atoms.calc.results["energy"]))
        waiting = [f for f in waiting if f is not frame]
        assert frame.energy == pytest.approx(atoms.calc.results["energy"], abs=tolerance)
        a = np.lexsort((*np.round(frame.forces.T, 5), frame.numbers))
        b = np.lexsort((*np.round(atoms.calc.results["forces"].T, 5), atoms.numbers))
        assert (frame.numbers[a] == atoms.numbers[b]).all()
        np.testing.assert_allclose(frame.forces[a], atoms.calc.results["forces"][b], atol=tolerance)
        np.testing.assert_allclose(frame.positions[a], atoms.positions[b], atol=tolerance)
        np.testing.assert_array_equal(frame.pbc, atoms.pbc)
        if atoms.pbc.any():
            np.testing.assert_allclose(frame.cell, atoms.cell[:], atol=tolerance)


@pytest.mark.parametrize("kind", LABELLED)
def test_numbers_come_back(kind, tmp_path):
    images = crystals(3)
    if kind == "OUTCAR":
        images = images[:1]
        order = np.argsort(images[0].get_chemical_symbols(), kind="stable")
        images = [labelled(images[0][order])]
    report = LabelReport()
    frames = read(write_as(kind, images, tmp_path), report=report)
    # dpdata keeps DeePMD virials from ASE's stress in float64; extended XYZ prints 8 digits.
    same_frames(frames, images, 1e-5 if kind in ("deepmd/npy", "deepmd/npy/mixed", "padded", "deepmd/hdf5") else 1e-6)
    for frame in frames:
        atoms = min(images, key=lambda a: abs(a.calc.results["energy"] - frame.energy))
        np.testing.assert_allclose(frame.virial, strain_derivative(atoms), atol=2e-5)
    assert sum(source.count("virial") for source in report.sources) == len(images)
    assert "energy" in str(report)


@pytest.mark.parametrize("kind", ["xyz", "traj", "db", "deepmd/npy", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/lmdb"])
def test_molecules_are_not_periodic(kind, tmp_path):
    images = [labelled(molecule(name)) for name in ("CH4", "H2O", "N2")]
    if kind.startswith("deepmd"):
        from ase.calculators.singlepoint import SinglePointCalculator

        boxed = [atoms.copy() for atoms in images]
        for box, atoms in zip(boxed, images, strict=True):
            box.set_cell(np.eye(3) * 50)
            box.calc = SinglePointCalculator(box, **atoms.calc.results, stress=np.zeros(6))
        data = systems(boxed)
        for system in data:
            system.data["nopbc"] = True
        path = tmp_path / ("data.h5" if kind == "deepmd/hdf5" else "data.lmdb" if kind == "deepmd/lmdb" else "data")
        data.to(kind, str(path))
    else:
        path = write_as(kind, images, tmp_path)
    frames = read(path)
    same_frames(frames, images, 1e-5)
    assert all(frame.virial is None for frame in frames)


def test_lmdb_of_deepmd_kit_itself():
    expected = read(FILES / "mlearn_Ge.xyz")[:4]
    for frame, other in zip(read(FILES / "deepmd.lmdb"), expected, strict=True):
        for name in ("numbers", "positions", "cell", "energy", "forces", "virial"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(other, name))


def test_several_systems_below_one_root_and_groups(tmp_path):
    images = crystals(4)
    systems(images[:2]).to("deepmd/npy", str(tmp_path / "root" / "a"))
    systems(images[2:]).to("deepmd/npy/mixed", str(tmp_path / "root" / "deep" / "b"))
    same_frames(read(tmp_path / "root"), images, 1e-5)
    assert len(read(tmp_path / "root" / "a")) == 2
    assert len(read(f"{tmp_path}/root/**")) == 4
    systems(images).to("deepmd/hdf5", str(tmp_path / "all.h5"))
    names = [s.source.split("#/")[1] for s in _report(tmp_path / "all.h5").sources]
    assert len(names) == 2
    assert sum(len(read(f"{tmp_path}/all.h5#/{name}")) for name in names) == 4


def _report(path) -> LabelReport:
    report = LabelReport()
    read(path, report=report)
    return report


def test_several_sets_are_read_in_order_with_partial_labels(tmp_path):
    images = crystals(1) * 4
    dpdata.LabeledSystem(images[0], fmt="ase/structure").to("deepmd/npy", str(tmp_path / "a"), set_size=1)
    first = tmp_path / "a" / "set.000"
    second = tmp_path / "a" / "set.001"
    second.mkdir()
    for file in first.iterdir():
        if file.name != "virial.npy":
            np.save(second / file.name, np.concatenate([np.load(file)] * 2))
    frames = read(tmp_path / "a")
    assert [frame.virial is not None for frame in frames] == [True, False, False]
    assert [frame.index for frame in frames] == [0, 1, 2]


def test_type_map_is_asked_for_and_taken(tmp_path):
    images = crystals(1)
    systems(images).to("deepmd/npy", str(tmp_path))
    folder = next(tmp_path.iterdir())
    symbols = (folder / "type_map.raw").read_text().split()
    (folder / "type_map.raw").unlink()
    with pytest.raises(UserError, match="type_map"):
        read(folder)
    same_frames(read(folder, type_map=symbols), images, 1e-5)
    (folder / "type_map.raw").write_text("TYPE_0\nTYPE_1\n")
    with pytest.raises(UserError, match="TYPE_0"):
        read(folder)
    same_frames(read(folder, type_map=symbols), images, 1e-5)


def test_structures_without_labels(tmp_path):
    atoms = crystals(1)[0]
    atoms.calc = None
    for name, options in (
        ("POSCAR", {"format": "vasp"}),
        ("a.cif", {}),
        ("water.data", {"format": "lammps-data", "masses": True}),
        ("conf.in", {"format": "lammps-data", "masses": True}),
    ):
        write(tmp_path / name, atoms, **options)
        (frame,) = read(tmp_path / name)
        assert sorted(frame.numbers) == sorted(atoms.numbers)
        assert frame.energy is None
        assert frame.volume == pytest.approx(atoms.get_volume(), rel=1e-4)
    write(tmp_path / "bare.data", atoms, format="lammps-data")
    with pytest.raises(UserError, match="Masses"):
        read(tmp_path / "bare.data")


def test_cells_and_boundaries_are_kept_as_they_are(tmp_path):
    random = np.random.default_rng(1)
    images = []
    for pbc in ((1, 1, 1), (1, 1, 0), (0, 0, 1), (0, 0, 0)):
        cell = random.normal(size=(3, 3)) + np.diag([3] * 3)
        images.append(Atoms("CuAl", positions=random.normal(size=(2, 3)) * 9, cell=cell, pbc=pbc))
    images[0].cell[0] *= -np.sign(np.linalg.det(images[0].cell[:]))
    assert np.linalg.det(images[0].cell[:]) < 0
    write(tmp_path / "a.xyz", images, format="extxyz")
    write(tmp_path / "a.traj", images)
    for path in ("a.xyz", "a.traj"):
        for frame, atoms in zip(read(tmp_path / path), images, strict=True):
            np.testing.assert_allclose(frame.cell, atoms.cell[:], atol=1e-7)
            np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-7)
            np.testing.assert_array_equal(frame.pbc, atoms.pbc)


def test_extended_xyz_agrees_with_ase_on_real_data():
    from ase.io import read as ase_read

    from dpa1.frames import from_ase

    for name in ("mlearn_Ge.xyz", "oxides.xyz", "bpa.xyz"):
        for frame, atoms in zip(read(FILES / name), ase_read(FILES / name, ":"), strict=True):
            other = from_ase(atoms)
            for key in ("numbers", "positions", "cell", "pbc", "energy"):
                np.testing.assert_array_equal(getattr(frame, key), getattr(other, key))
            if frame.virial is not None:
                np.testing.assert_allclose(frame.virial, other.virial, atol=2e-4)


def test_round_trip_through_ase_keeps_labels(tmp_path):
    frames = read(FILES / "mlearn_Ge.xyz")
    write(tmp_path / "a.traj", [to_ase(frame) for frame in frames])
    for frame, again in zip(frames, read(tmp_path / "a.traj"), strict=True):
        np.testing.assert_allclose(again.virial, frame.virial, atol=1e-7)
        np.testing.assert_array_equal(again.forces, frame.forces)
