"""``data check`` names what is wrong, and is quiet about what is right."""

import json

import numpy as np
import pytest
import typer
from ase.io import write
from typer.testing import CliRunner

from dpa1.cli import data as verb
from dpa1.data.check import check
from dpa1.data.evidence import judge_virial
from dpa1.data.read import read
from dpa1.errors import UserError
from dpa1.frames import to_ase
from tests.data.common import FILES, crystals, labelled, systems


def test_real_sets_pass():
    result = check([FILES / "oxides.xyz", FILES / "mlearn_Ge.xyz"])
    assert not result.errors
    facts = result.facts
    assert facts["frames"] == 39
    assert facts["labels"] == {"energy": 39, "forces": 39, "virial": 39, "atomic_energies": 0}
    assert facts["elements"]["Ge"]["frames"] == 6
    assert facts["periodicity"]["bulk"] == 39
    assert facts["composition"]["tied"] == [["O", "Ti", "Sn", "Ir"]]
    assert facts["virial"]["verdict"] == "right"
    assert facts["virial"]["slope"] == pytest.approx(1.0, abs=0.02)
    assert facts["forces"]["largest"][0]["size"] == pytest.approx(
        max(np.linalg.norm(f.forces, axis=1).max() for f in read([FILES / "oxides.xyz", FILES / "mlearn_Ge.xyz"]))
    )
    assert facts["contacts"][0]["distance"] < 2.0
    json.dumps(result.as_dict())


@pytest.mark.parametrize(
    ("factor", "verdict", "unit"),
    [(1.0, "right", ""), (-1.0, "wrong sign", ""), (160.2177, "wrong unit", "GPa"), (1602.177, "wrong unit", "kbar"),
     (-1602.177, "wrong sign", "kbar")],
)  # fmt: skip
def test_sign_and_unit_of_the_virial(factor, verdict, unit):
    frames = [frame.replace(virial=factor * frame.virial) for frame in read(FILES / "oxides.xyz")]
    judged = judge_virial(frames)
    assert judged["verdict"] == verdict
    assert unit in judged["sentence"]


def test_sign_from_the_pressure_trend_alone():
    random = np.random.default_rng(0)
    images = []
    for scale in np.linspace(0.94, 1.06, 12):
        atoms = crystals(1)[0]
        atoms.set_cell(atoms.cell[:] * scale, scale_atoms=True)
        atoms.positions += 0.1 * random.normal(size=(4, 3))
        images.append(labelled(atoms))
    from dpa1.frames import from_ase

    frames = [from_ase(atoms) for atoms in images]
    assert judge_virial(frames)["method"] == "pressure trend"
    assert judge_virial(frames)["verdict"] == "right"
    flipped = [frame.replace(virial=-frame.virial) for frame in frames]
    assert judge_virial(flipped)["verdict"] == "wrong sign"
    assert judge_virial(frames[:2])["verdict"] == "cannot be judged"


def test_outliers_duplicates_forces_and_contacts_are_named(tmp_path):
    images = [to_ase(frame) for frame in read(FILES / "oxides.xyz")]
    images[4].calc.results["energy"] += 30.0
    images[5].calc.results["forces"] = np.full((len(images[5]), 3), 40.0)
    images.append(images[7].copy())
    images[-1].calc = images[7].calc
    images.append(images[8].copy())
    images[-1].calc = type(images[8].calc)(images[-1], energy=images[8].calc.results["energy"] + 1.0)
    images[6].positions[0] = images[6].positions[1] + [0.0, 0.0, 0.7]
    write(tmp_path / "a.xyz", images, format="extxyz")
    result = check(tmp_path / "a.xyz")
    text = "\n".join(result.warnings)
    assert not result.errors
    assert "frame 4" in result.facts["energy"]["worst"][0]["frame"]
    assert "frame 5" in result.facts["forces"]["largest"][0]["frame"]
    assert "frame 6" in result.facts["contacts"][0]["frame"]
    assert result.facts["contacts"][0]["distance"] == pytest.approx(0.7)
    assert (result.facts["duplicates"]["same_energy"], result.facts["duplicates"]["other_energy"]) == (1, 1)
    for words in (
        "energy far from what the composition explains: 1 of",
        "exceeds 30",
        "do not sum to zero",
        "closer than",
        "two energies",
    ):
        assert words in text


def test_isolated_atoms_are_no_outliers():
    result = check(FILES / "bpa.xyz")
    assert result.facts["energy"]["outliers"] == 0
    assert result.facts["energy"]["isolated_atoms"].keys() == {"C", "H", "N", "O"}
    assert result.facts["neighbors"]["atoms_without"] == 4


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    verb.register(app)
    answer = CliRunner().invoke(app, ["data", *arguments])
    return answer.exit_code, answer.stdout, answer.exception


def test_command_line(tmp_path):
    code, text, _ = run("check", str(FILES / "oxides.xyz"))
    assert code == 0
    for words in ("composition fit", "closest contacts", "virial: ΔE", "forecast", "warning: "):
        assert words in text
    code, text, _ = run("check", "--json", str(FILES / "oxides.xyz"))
    assert json.loads(text)["frames"] == 33
    code, text, _ = run("pack", str(FILES / "oxides.xyz"), str(tmp_path / "s"), "--level", "pbe")
    assert code == 0
    assert "33 frames" in text
    assert read(tmp_path / "s")[0].level == "pbe"
    error = run("pack", str(FILES / "oxides.xyz"), str(tmp_path / "s"))[2]
    assert isinstance(error, UserError)
    error = run("check", str(FILES / "oxides.xyz"), "--label", "energy=nothing")[2]
    assert isinstance(error, UserError)
    assert "no frame has 'nothing'" in str(error)
    error = run("check", str(FILES / "oxides.xyz"), "--label", "energy")[2]
    assert "QUANTITY=KEY" in str(error)


def test_unusable_data_is_an_error(tmp_path):
    atoms = crystals(1)[0]
    atoms.calc = None
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    error = run("check", str(tmp_path / "a.xyz"))[2]
    assert isinstance(error, UserError)
    assert "no frame has an energy" in str(error)


def test_type_map_on_the_command_line(tmp_path):
    systems(crystals(1)).to("deepmd/npy", str(tmp_path / "d"))
    next(tmp_path.rglob("type_map.raw")).unlink()
    assert isinstance(run("check", str(tmp_path / "d"))[2], UserError)
    assert run("check", str(tmp_path / "d"), "--type-map", "Al,Cu")[0] == 0
