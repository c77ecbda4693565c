"""The streaming errors are the plain formulas, whatever the order, the grouping and the missing labels."""

import numpy as np
import pytest
import torch

from dpa1.batch import make_batch
from dpa1.frames import make_frame
from dpa1.model.metrics import Metrics


def some_frames(seed=0, count=7):
    """Frames of different sizes and elements; some lack forces, virial, energy or a cell."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        n = int(rng.integers(1, 6))
        frames.append(
            make_frame(
                rng.choice([1, 8, 14], n),
                rng.uniform(0, 9, (n, 3)) + 3 * np.arange(n)[:, None],
                None if k == 3 else 30 * np.eye(3),
                energy=None if k == 1 else rng.normal(),
                forces=None if k == 2 else rng.normal(size=(n, 3)),
                virial=None if k in (3, 4) else rng.normal(size=(3, 3)),
                source="odd.xyz" if k % 2 else "even.xyz",
                index=k,
            )
        )
    return frames


def some_prediction(batch, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "energy": torch.from_numpy(rng.normal(size=len(batch))),
        "forces": torch.from_numpy(rng.normal(size=(len(batch.numbers), 3))),
        "virial": torch.from_numpy(rng.normal(size=(len(batch), 3, 3))),
    }


def piece(prediction, frames, k):
    starts = np.concatenate([[0], np.cumsum([len(f) for f in frames])])
    return {
        "energy": prediction["energy"][k : k + 1],
        "forces": prediction["forces"][starts[k] : starts[k + 1]],
        "virial": prediction["virial"][k : k + 1],
    }


def test_equal_to_the_plain_formulas():
    frames = some_frames()
    batch = make_batch(frames, 2.0)
    prediction = some_prediction(batch)
    metrics = Metrics(worst=2)
    metrics.update(batch, prediction, [f.source for f in frames])
    result = metrics.result()
    starts = np.concatenate([[0], np.cumsum([len(f) for f in frames])])
    energy = [
        (prediction["energy"][k].item() - f.energy) / len(f) for k, f in enumerate(frames) if f.energy is not None
    ]
    forces = [
        prediction["forces"][starts[k] : starts[k + 1]].numpy() - f.forces
        for k, f in enumerate(frames)
        if f.forces is not None
    ]
    virial = {k: prediction["virial"][k].numpy() - f.virial for k, f in enumerate(frames) if f.virial is not None}
    assert result["energy_mae"] == pytest.approx(np.abs(energy).mean(), rel=1e-13)
    assert result["energy_rmse"] == pytest.approx(np.sqrt(np.square(energy).mean()), rel=1e-13)
    flat = np.concatenate([f.ravel() for f in forces])
    assert result["force_rmse"] == pytest.approx(np.sqrt((flat**2).mean()), rel=1e-13)
    assert result["force_mae"] == pytest.approx(np.abs(flat).mean(), rel=1e-13)
    per_atom = np.concatenate([(v / len(frames[k])).ravel() for k, v in virial.items()])
    assert result["virial_rmse"] == pytest.approx(np.sqrt((per_atom**2).mean()), rel=1e-13)
    stress = np.concatenate([(v / frames[k].volume).ravel() for k, v in virial.items()])
    assert result["stress_mae"] == pytest.approx(np.abs(stress).mean(), rel=1e-13)
    assert result["n_frames"] == 7
    assert result["n_atoms"] == sum(len(f) for f in frames)
    worst = max(range(len(energy)), key=lambda k: abs(energy[k]))
    assert result["worst"]["energy"][0]["error"] == pytest.approx(abs(energy[worst]), rel=1e-13)
    assert len(result["worst"]["force"]) == 2


def test_per_element_and_per_source():
    frames = some_frames()
    batch = make_batch(frames, 2.0)
    prediction = some_prediction(batch)
    metrics = Metrics()
    metrics.update(batch, prediction, [f.source for f in frames])
    result = metrics.result()
    error = (prediction["forces"] - batch.forces).numpy()
    for symbol, z in (("H", 1), ("O", 8), ("Si", 14)):
        chosen = error[(batch.numbers == z).numpy()]
        chosen = chosen[~np.isnan(chosen)]
        assert result["per_element"][symbol]["force_rmse"] == pytest.approx(np.sqrt((chosen**2).mean()), rel=1e-13)
    alone = Metrics()
    for k, frame in enumerate(frames):
        if frame.source == "odd.xyz":
            alone.update(make_batch([frame], 2.0), piece(prediction, frames, k))
    for key, value in result["per_source"]["odd.xyz"].items():
        assert value == pytest.approx(alone.result()[key], rel=1e-13)


def test_one_by_one_and_reduced_give_the_same():
    frames = some_frames(5)
    batch = make_batch(frames, 2.0)
    prediction = some_prediction(batch)
    whole, single, left, right = Metrics(worst=3), Metrics(worst=3), Metrics(), Metrics()
    whole.update(batch, prediction, [f.source for f in frames])
    for k, frame in enumerate(frames):
        for part in (single, right if k > 2 else left):
            part.update(make_batch([frame], 2.0), piece(prediction, frames, k), [frame.source])
    torch.testing.assert_close(left.sums + right.sums, whole.sums, rtol=1e-13, atol=0)
    a, b = whole.result(), single.result()
    for key in ("energy_rmse", "energy_mae", "force_rmse", "force_mae", "virial_rmse", "stress_rmse"):
        assert a[key] == pytest.approx(b[key], rel=1e-13)
    assert [w["frame"] for w in a["worst"]["force"]] == [w["frame"] for w in b["worst"]["force"]]
    assert a["per_source"].keys() == b["per_source"].keys()


def test_absent_labels_are_nan_not_zero():
    batch = make_batch([make_frame([1], np.zeros((1, 3)), energy=1.0)], 2.0)
    metrics = Metrics()
    metrics.update(batch, {"energy": torch.tensor([2.0], dtype=torch.float64), "forces": torch.zeros(1, 3)})
    result = metrics.result()
    assert result["energy_rmse"] == 1.0
    assert np.isnan(result["force_rmse"])
    assert np.isnan(result["virial_mae"])
    assert result["per_element"] == {}


def test_a_prediction_that_is_not_finite_is_not_hidden():
    batch = make_batch([make_frame([1], np.zeros((1, 3)), energy=1.0)], 2.0)
    metrics = Metrics()
    metrics.update(batch, {"energy": torch.tensor([float("nan")], dtype=torch.float64)})
    assert np.isnan(metrics.result()["energy_rmse"])
    assert metrics.sums[0, 0] == 1
