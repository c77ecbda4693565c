"""``evaluate`` is the same whatever the batching, and equals what the predictions say."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

import dpa1
from dpa1.analysis.evaluate import evaluate
from dpa1.analysis.record import Points, Recorder
from dpa1.errors import RunError, UserError
from dpa1.frames import to_ase
from dpa1.model.file import save_model
from dpa1.model.inference import pick_device
from dpa1.model.potential import Potential
from tests.contracts.systems import example_options, predict, random_frame, random_potential

GERMANIUM = Path(__file__).parents[2] / "examples" / "data" / "mlearn_Ge" / "test.xyz.gz"
ERRORS = [f"{q}_{kind}" for q in ("energy", "force", "virial", "stress") for kind in ("rmse", "mae")]


@pytest.fixture(scope="module")
def potential():
    return random_potential(example_options(attention_layers=1))


@pytest.fixture(scope="module")
def frames(potential):
    """Labels are the model's own numbers plus known differences; sizes, periodicity and labels vary."""
    out = []
    for seed, (atoms, pbc) in enumerate([(5, True), (2, False), (7, (True, True, False)), (1, True), (6, True)]):
        frame = random_frame(seed, atoms=atoms, pbc=pbc)
        own = predict(potential, frame)
        rng = np.random.default_rng(seed)
        out.append(
            frame.replace(
                energy=float(own["energy"][0]) + 0.01 * atoms,
                forces=None if seed == 2 else own["forces"] + rng.choice([-0.1, 0.1], (atoms, 3)),
                virial=own["virial"][0] + 0.02 * atoms if seed in (0, 4) else None,
                source="first" if seed < 3 else "second",
                index=seed,
            )
        )
    return out


def test_known_differences(potential, frames):
    result = dpa1.evaluate(potential, frames)
    for kind in ("rmse", "mae"):
        assert result[f"energy_{kind}"] == pytest.approx(0.01, rel=1e-9)
        assert result[f"force_{kind}"] == pytest.approx(0.1, rel=1e-9)
        assert result[f"virial_{kind}"] == pytest.approx(0.02, rel=1e-9)
    assert (result["n_frames"], result["n_atoms"]) == (5, 21)
    assert set(result["per_source"]) == {"first", "second"}
    assert np.isnan(evaluate(potential, frames[1:2])["virial_rmse"])
    assert result["worst"]["virial"][0]["frame"].endswith(("frame 0", "frame 4"))


@pytest.mark.parametrize("batch_atoms", [1, 8, 13, 10_000])
def test_one_by_one_or_in_batches(potential, frames, batch_atoms):
    alone, together = evaluate(potential, frames, batch_atoms=1), evaluate(potential, frames, batch_atoms=batch_atoms)
    for key in ERRORS:
        assert together[key] == pytest.approx(alone[key], rel=1e-12, abs=1e-14), key
    for group in ("per_element", "per_source"):
        for name in alone[group]:
            assert together[group][name] == pytest.approx(alone[group][name], rel=1e-12, abs=1e-14, nan_ok=True)


def test_paths_atoms_and_frames_are_one(tmp_path):
    potential = random_potential(example_options(elements=("Ge",), cutoff=3.0, attention_layers=0))
    save_model(potential, tmp_path / "m.dpa1")
    frames = dpa1.read(GERMANIUM)
    by_path = evaluate(dpa1.load(tmp_path / "m.dpa1"), GERMANIUM)
    for data in (frames, [to_ase(frame) for frame in frames], [GERMANIUM]):
        other = evaluate(potential, data)
        assert all(other[key] == pytest.approx(by_path[key], rel=1e-9) for key in ERRORS)
    assert by_path["n_frames"] == 25
    assert by_path["force_rmse"] > 0.1


def test_precision_and_the_original(potential, frames):
    single, double = evaluate(potential, frames, dtype="float32"), evaluate(potential, frames)
    assert str(potential.dtype) == "torch.float64"
    assert single["force_rmse"] != double["force_rmse"]
    assert single["force_rmse"] == pytest.approx(double["force_rmse"], abs=1e-5)


def test_errors_name_the_frame(potential, frames):
    with pytest.raises(UserError, match="no frames"):
        evaluate(potential, [])
    with pytest.raises(UserError, match=r"dpa1\.load\('m\.dpa1'\)"):
        evaluate("m.dpa1", frames)
    with pytest.raises(UserError, match="none of the 1 frames"):
        evaluate(potential, [frames[0].replace(energy=None, forces=None, virial=None)])
    strange = frames[0].replace(numbers=np.full(5, 79))
    with pytest.raises(UserError, match="first, frame 0: the model does not know Au; it knows H, O, Cu"):
        evaluate(potential, [frames[1], strange])
    with pytest.raises(UserError, match="unknown level"):
        evaluate(potential, frames, level="hybrid")
    with pytest.raises(UserError, match="unknown name"):
        pick_device("abacus")
    broken = random_potential(example_options())
    broken.energy_bias[0, 0] = float("nan")
    only_hydrogen = frames[0].replace(numbers=np.full(5, 1))
    with pytest.raises(RunError, match=r"first, frame 0: .*not finite"):
        evaluate(broken, [only_hydrogen])


def test_levels_of_the_frames(frames):
    potential = Potential(random_potential(example_options()).config, ["pbe", "r2scan"])
    potential.energy_bias[1] += 5.0
    own = [
        float(potential.calculator(level=level).get_potential_energy(to_ase(frames[0]))) for level in ("pbe", "r2scan")
    ]
    labelled = [
        frames[0].replace(energy=e, forces=None, virial=None, level=level)
        for e, level in zip(own, ("pbe", "r2scan"), strict=True)
    ]
    assert own[1] == pytest.approx(own[0] + 25.0)
    assert evaluate(potential, labelled)["energy_rmse"] < 1e-12
    assert evaluate(potential, labelled, level="pbe")["energy_rmse"] == pytest.approx(5.0 / 2**0.5)
    for level, expected in ((None, 0.0), ("pbe", 5.0)):
        recorder = Recorder(potential, io.StringIO(), level)
        evaluate(potential, labelled, level=level, observe=recorder.observe)
        reference, predicted = recorder.points["energy"].arrays()
        # Without the biases of their level the two frames are one, so that a wrong one would show as 5 eV.
        assert abs(reference[1] - reference[0]) == pytest.approx(expected, abs=1e-9)
        assert abs(predicted[1] - predicted[0]) < 1e-9
    with pytest.raises(UserError, match="level of theory is not given"):
        evaluate(potential, frames)


def test_rows_per_frame(potential, frames):
    file = io.StringIO()
    recorder = Recorder(potential, file)
    evaluate(potential, frames, batch_atoms=9, observe=recorder.observe)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [int(row["frame"]) for row in rows] == [0, 1, 2, 3, 4]
    for row, frame in zip(rows, frames, strict=True):
        assert float(row["energy_error_meV_per_atom"]) == pytest.approx(-10.0)
        assert float(row["energy_eV"]) == pytest.approx(frame.energy)
        if frame.forces is None:
            assert row["force_rmse_meV_per_A"] == ""
        else:
            assert float(row["force_rmse_meV_per_A"]) == pytest.approx(100.0)
        assert (row["virial_rmse_meV_per_atom"] == "") == (frame.virial is None)
    reference, predicted = recorder.points["force"].arrays()
    assert len(reference) == 3 * (5 + 2 + 1 + 6)
    np.testing.assert_allclose(np.abs(reference - predicted), 0.1, rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_points_are_thinned_evenly(chunk):
    points = Points(most=300)
    stream = np.arange(4321.0)
    for start in range(0, len(stream), chunk):
        part = stream[start : start + chunk]
        points.add(part, -part)
    reference, predicted = points.arrays()
    assert 150 <= len(reference) <= 300
    assert np.array_equal(predicted, -reference)
    assert np.array_equal(reference, stream[:: points.step])
