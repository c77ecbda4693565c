"""Several sources and levels of theory in one run: bias, heads, sampling, labels, outliers, errors per source."""

import csv

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpa1.analysis.evaluate import evaluate
from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.config.run import config_from
from dpa1.data.read import read
from dpa1.errors import RunError, UserError
from dpa1.frames import to_ase
from dpa1.model.file import load_model, save_model
from dpa1.model.potential import Potential
from dpa1.training import prepare
from dpa1.training.run import train
from tests.training.toy import MODEL, emt_frames, toy_config

SHIFT = {"Cu": 2.0, "Al": -1.0}  # eV per atom between the two levels


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def shifted(frames):
    for atoms in frames:
        atoms.calc.results["energy"] += sum(SHIFT[s] for s in atoms.symbols)
    return frames


@pytest.fixture
def two(tmp_path):
    """A configuration over 20 frames of level ``emt`` and 12 of level ``shifted``."""
    write(tmp_path / "a.xyz", emt_frames(20))
    write(tmp_path / "b.xyz", shifted(emt_frames(12, seed=5)))
    sources = [
        {"path": str(tmp_path / "a.xyz"), "name": "A", "level": "emt"},
        {"path": str(tmp_path / "b.xyz"), "name": "B", "level": "shifted"},
    ]

    def config(**sections):
        data = {"train": sources, "valid": 0.2, **sections.pop("data", {})}
        return toy_config(tmp_path, data=data, **sections)

    config.sources = sources
    return config


def small(levels, **options):
    torch.manual_seed(0)
    return Potential(ModelConfig(**MODEL, elements=("Al", "Cu"), mean_neighbors=18, **options), levels)


def test_each_level_has_its_energies_and_all_share_the_forces(two, tmp_path):
    result = train(two(), quiet=True)
    potential = load_model(result.model)
    assert potential.levels == ("emt", "shifted")
    difference = dict(
        zip(potential.elements, (potential.energy_bias[1] - potential.energy_bias[0]).tolist(), strict=True)
    )
    assert difference == pytest.approx(SHIFT, abs=0.3)
    frame = read(tmp_path / "a.xyz")[0]
    emt, other = (potential.calculator(level=level) for level in potential.levels)
    atoms = to_ase(frame)
    gap = other.get_potential_energy(atoms) - emt.get_potential_energy(atoms)
    assert gap == pytest.approx(sum(difference[s] for s in atoms.symbols), abs=1e-6)
    np.testing.assert_allclose(other.get_forces(atoms), emt.get_forces(atoms), atol=1e-12)
    text = result.folder.joinpath("train.log").read_text()
    assert text.count("rank 2 of 2") == 4
    assert potential.info["level_data"]["shifted"] == {"elements": ["Al", "Cu"], "frames": 10}


def test_errors_per_source_and_level(two, tmp_path):
    result = train(two(), quiet=True)
    rows = rows_of(result.folder / "sources.csv")
    assert [(r["step"], r["source"], r["level"], r["frames"]) for r in rows] == [
        ("10", "A", "emt", "4"), ("10", "B", "shifted", "2"), ("20", "A", "emt", "4"), ("20", "B", "shifted", "2"),
    ]  # fmt: skip
    total = rows_of(result.folder / "metrics.csv")[-1]
    square = sum(float(r["energy_rmse"]) ** 2 * int(r["frames"]) for r in rows[2:]) / 6
    assert square**0.5 == pytest.approx(float(total["valid_energy_rmse"]), rel=1e-6)
    assert [row["source"] for row in result.valid["sources"]] == ["A", "B"]

    potential = load_model(result.model)
    frames = [frame.replace(level="emt") for frame in read(tmp_path / "a.xyz")]
    frames += [frame.replace(level="shifted") for frame in read(tmp_path / "b.xyz")]
    found = evaluate(potential, frames)
    assert found["per_level"]["emt"]["energy_rmse"] == pytest.approx(
        evaluate(potential, read(tmp_path / "a.xyz"), level="emt")["energy_rmse"]
    )
    assert set(found["per_level"]) == {"emt", "shifted"}


def test_resumed_run_is_the_same_run(two, tmp_path, monkeypatch):
    shares = [{**source, "share": share} for source, share in zip(two.sources, (1.0, 3.0), strict=True)]
    options = {"data": {"train": shares}, "training": {"checkpoint_every": 8}, "model": {"fitting_per_level": True}}
    whole = load_model(train(two(output=str(tmp_path / "whole"), **options), quiet=True).model)

    from dpa1.training.trainer import Trainer

    original = Trainer._tell

    def interrupt(self, step, rate):
        if step == 13:
            raise RunError("interrupted")
        return original(self, step, rate)

    monkeypatch.setattr(Trainer, "_tell", interrupt)
    with pytest.raises(RunError, match="interrupted"):
        train(two(**options), quiet=True)
    monkeypatch.undo()
    other = [{**source, "share": 1.0} for source in two.sources]
    with pytest.raises(UserError, match="share"):
        train(two(**{**options, "data": {"train": other}}), resume=True, quiet=True)
    result = train(two(**options), resume=True, quiet=True)
    for name, tensor in load_model(result.model).state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    steps = [row["step"] for row in rows_of(result.folder / "sources.csv")]
    assert steps == ["10", "10", "20", "20"]


def test_a_run_of_constant_rate_may_become_longer_or_shorter(tmp_path, monkeypatch):
    wsd = {"kind": "wsd", "decay_fraction": 0.25, "warmup_steps": 2}
    options = {"schedule": wsd, "checkpoint_every": 8, "valid_every": 8}
    short = load_model(train(toy_config(tmp_path, training=options, output=str(tmp_path / "s")), quiet=True).model)

    from dpa1.training.trainer import Trainer

    original = Trainer._tell

    def interrupt(self, step, rate):
        if step == 10:
            raise RunError("interrupted")
        return original(self, step, rate)

    monkeypatch.setattr(Trainer, "_tell", interrupt)
    with pytest.raises(RunError, match="interrupted"):
        train(toy_config(tmp_path, training={**options, "steps": 1000}), quiet=True)
    monkeypatch.undo()
    # Step 8 of 9 would have been in the decay; a longer warm-up would have made other steps.
    for changed in ({"steps": 9}, {"schedule": {**wsd, "warmup_steps": 3}}, {"schedule": {**wsd, "kind": "cosine"}}):
        with pytest.raises(UserError, match=r"in the run to resume but .* now"):
            train(toy_config(tmp_path, training={**options, **changed}), resume=True, quiet=True)
    model = load_model(train(toy_config(tmp_path, training=options), resume=True, quiet=True).model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, short.state_dict()[name]), name


def test_a_fitting_net_per_level(tmp_path):
    shared, own = small(["a", "b"]), small(["a", "b"], fitting_per_level=True)
    assert set(small(["a"], fitting_per_level=True).state_dict()) == set(shared.state_dict())
    assert {name.split(".")[0] for name in own.state_dict()} - {name.split(".")[0] for name in shared.state_dict()} == {
        "level_fittings"
    }
    with torch.no_grad():
        own.level_fittings[0].output.weight.mul_(2.0)
    frames = [frame.replace(level=level) for frame, level in zip(_frames(3), "aba", strict=True)]
    mixed = own.predict(make_batch(frames, own.cutoff, levels=own.levels))
    for k, frame in enumerate(frames):
        alone = own.predict(make_batch([frame], own.cutoff), level=frame.level)
        assert mixed["energy"][k].item() == pytest.approx(alone["energy"].item(), abs=1e-6)
        assert mixed["virial"][k].numpy() == pytest.approx(alone["virial"][0].numpy(), abs=1e-5)
    first = own.predict(make_batch(frames[1:2], own.cutoff), level="a")["energy"]
    assert abs(first.item() - mixed["energy"][1].item()) > 1e-3
    save_model(own, tmp_path / "own.dpa1")
    back = load_model(tmp_path / "own.dpa1")
    assert torch.equal(back.level_fittings[0].output.weight, own.level_fittings[0].output.weight)


def _frames(n):
    from dpa1.frames import from_ase

    return [from_ase(atoms, source="toy", index=k) for k, atoms in enumerate(emt_frames(n))]


def test_training_changes_both_fitting_nets(two):
    result = train(two(model={"fitting_per_level": True}), quiet=True)
    potential = load_model(result.model)
    assert not torch.equal(potential.fitting.output.weight, potential.level_fittings[0].output.weight)


@pytest.mark.parametrize("call", [lambda p, b: p.predict(b), lambda p, b: p(b), lambda p, b: p.calculator()])
def test_a_missing_or_wrong_level_is_refused_with_the_names_there_are(call):
    potential = small(["pbe", "r2scan"])
    batch = make_batch(_frames(1), potential.cutoff)
    with pytest.raises(UserError, match=r"several levels of theory \(pbe, r2scan\); name one of them with --level"):
        call(potential, batch)
    with pytest.raises(
        UserError, match=r"unknown level of theory 'r2scn'; this model holds pbe, r2scan.*did you mean 'r2scan'"
    ):
        potential.predict(batch, level="r2scn")
    with pytest.raises(UserError, match=r"toy, frame 0: its level of theory is hse, the model holds pbe, r2scan"):
        make_batch([_frames(1)[0].replace(level="hse")], potential.cutoff, levels=potential.levels)


def test_evaluation_does_not_compare_with_another_level():
    frames = [frame.replace(level="hse") for frame in _frames(2)]
    with pytest.raises(UserError, match=r"toy, frame 0: its level of theory is hse, the model holds pbe.*--level"):
        evaluate(small(["pbe"]), frames)
    assert evaluate(small(["pbe"]), frames, level="pbe")["n_frames"] == 2
    with pytest.raises(UserError, match="unknown level of theory 'hse'"):
        evaluate(small(["pbe"]), frames, level="hse")


def test_what_cannot_be_mixed_is_refused(two, tmp_path):
    a, b = two.sources
    unnamed = {key: value for key, value in b.items() if key != "level"}
    with pytest.raises(UserError, match="C: its level of theory is not given, while the training data hold emt"):
        train(two(data={"train": [a, {**b, "level": "c"}, unnamed | {"name": "C"}]}), quiet=True)
    with pytest.raises(UserError, match="B: its level of theory is not given, while the training data hold emt"):
        train(two(data={"train": [a, unnamed]}), quiet=True)
    with pytest.raises(
        UserError, match=r"validation data hold the level of theory 'ent'.*emt, shifted.*did you mean 'emt'"
    ):
        train(two(data={"valid": [{"path": a["path"], "level": "ent"}]}), quiet=True)
    with pytest.raises(UserError, match=r"energy_bias.*of which level of theory is 'Cu'.*emt, shifted"):
        train(two(training={"energy_bias": {"Cu": 1.0}}), quiet=True)
    with pytest.raises(UserError, match=r"energy_bias.*'emtt' is no level of theory.*emt, shifted"):
        train(two(training={"energy_bias": {"emtt": {"Cu": 1.0}}}), quiet=True)
    bare = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])]
    write(tmp_path / "bare.xyz", bare)
    with pytest.raises(UserError, match=r"none: no frame has energy or forces, which is all that the loss asks for"):
        train(
            two(data={"train": [a, {"path": str(tmp_path / "bare.xyz"), "name": "none", "level": "emt"}]}), quiet=True
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"train": [{"path": "a", "share": 1}, {"path": "b"}]}, "some sources have a share and b has none"),
        ({"train": [{"path": "a", "share": 1}], "sampling_temperature": 2}, "both given; keep one"),
        ({"train": "a", "valid": [{"path": "b", "share": 1}]}, "share belongs to training data"),
        ({"train": "a", "sampling_temperature": 0.5}, "sampling_temperature.*greater than or equal to 1"),
        ({"train": "a", "max_force": 0}, "max_force.*greater than 0"),
    ],
)
def test_sampling_options_that_contradict_each_other(data, sentence):
    with pytest.raises(UserError, match=sentence):
        config_from({"data": data}, "run.yaml")


def test_given_bias_of_one_level(two):
    potential = load_model(train(two(training={"energy_bias": {"shifted": {"Cu": -1.25}}}), quiet=True).model)
    column = potential.elements.index("Cu")
    assert potential.energy_bias[1, column] == -1.25
    assert potential.energy_bias[0, column] != -1.25


def test_isolated_atoms_of_each_level_are_exact(two, tmp_path):
    for name, energy in (("a", -3.0), ("b", -1.0)):
        atom = Atoms("Cu")
        atom.calc = SinglePointCalculator(atom, energy=energy, forces=np.zeros((1, 3)))
        write(tmp_path / f"{name}.xyz", atom, append=True)
    potential = load_model(train(two(), quiet=True).model)
    for level, energy in (("emt", -3.0), ("shifted", -1.0)):
        assert potential.calculator(level=level).get_potential_energy(Atoms("Cu")) == pytest.approx(energy, abs=1e-6)


def test_an_element_only_one_level_has(two, tmp_path):
    write(tmp_path / "b.xyz", emt_frames(12, seed=5, elements=("Cu",)))
    result = train(two(training={"refit_bias": False}), quiet=True)
    potential = load_model(result.model)
    al, cu = (potential.elements.index(s) for s in ("Al", "Cu"))
    bias = potential.energy_bias
    assert (bias[1, al] - bias[0, al]).item() == pytest.approx((bias[1, cu] - bias[0, cu]).item(), abs=1e-9)
    assert "level shifted has no energy with Al" in (result.folder / "train.log").read_text()
    assert potential.info["level_data"]["shifted"]["elements"] == ["Cu"]


def drawn(config, steps):
    run = config_from(config, "test")
    data = prepare.open_checked(run)
    potential, _ = prepare.build(run.model, data, np.arange(3), 1)
    loader = prepare.make_loader(data.train, run, potential, prepare.World(0, 1, torch.device("cpu")))
    numbers = np.concatenate([loader.sampler.next() for _ in range(steps)])
    return np.bincount(data.train.entry[numbers], minlength=2) / len(numbers)


@pytest.mark.parametrize(
    ("temperature", "shares", "expected"),
    [
        (1.0, None, 20 / 32),
        (2.0, None, 20**0.5 / (20**0.5 + 12**0.5)),
        (1e9, None, 0.5),
        (None, (1.0, 4.0), 0.2),
        (None, None, 20 / 32),
    ],
)
def test_chances_of_the_sources(two, temperature, shares, expected):
    data = {"valid": None, "sampling_temperature": temperature}
    if shares:
        data["train"] = [{**source, "share": share} for source, share in zip(two.sources, shares, strict=True)]
    assert drawn(two(data=data), 4000)[0] == pytest.approx(expected, abs=0.02)


def test_sources_without_some_labels(two, tmp_path):
    a, b = emt_frames(20), shifted(emt_frames(12, seed=5))
    for atoms in a:
        atoms.calc.results = {"forces": atoms.calc.results["forces"]}
    for atoms in b:
        atoms.calc.results = {key: atoms.calc.results[key] for key in ("energy", "stress")}
    write(tmp_path / "a.xyz", a)
    write(tmp_path / "b.xyz", b)
    result = train(two(loss={"virial": 0.1}), quiet=True)
    rows = {row["source"]: row for row in result.valid["sources"]}
    assert np.isnan(rows["A"]["energy_rmse"])
    assert np.isnan(rows["B"]["force_rmse"])
    assert rows["A"]["force_rmse"] > 0
    assert rows["B"]["virial_rmse"] > 0
    assert "level emt: no training frame has an energy" in (result.folder / "train.log").read_text()


def test_outliers_are_left_out_and_listed(two, tmp_path):
    a, b = emt_frames(20), shifted(emt_frames(12, seed=5))
    a[3].calc.results["forces"][2] = [30.0, 40.0, 0.0]
    b[5].calc.results["energy"] += 8 * 7.0
    write(tmp_path / "a.xyz", a)
    write(tmp_path / "b.xyz", b)
    result = train(two(data={"max_force": 40.0, "max_residual": 1.0}), quiet=True)
    rows = rows_of(result.folder / "dropped.csv")
    assert [(r["source"], r["frame"], r["quantity"]) for r in rows] == [
        ("A", "3", "force"), ("B", "5", "energy from the composition fit"),
    ]  # fmt: skip
    assert float(rows[0]["value"]) == pytest.approx(50.0)
    text = (result.folder / "train.log").read_text()
    assert "outliers: 2 frames named for training are left out, listed in dropped.csv" in text
    assert load_model(result.model).info["dropped"] == 2
    assert load_model(result.model).info["frames"]["train"] + load_model(result.model).info["frames"]["valid"] == 30
    with pytest.raises(UserError, match="no training frame is within max_force 1e-06"):
        train(two(data={"max_force": 1e-6}, output=str(tmp_path / "none")), quiet=True)


def test_without_limits_nothing_is_left_out(two):
    result = train(two(), quiet=True)
    assert not (result.folder / "dropped.csv").exists()
    assert "outliers" not in (result.folder / "train.log").read_text()
