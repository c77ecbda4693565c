"""Whole runs: what they write, how they stop, what they refuse."""

import csv
import json
import math

import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write
from typer.testing import CliRunner

import dpa1
from dpa1.cli.train import register
from dpa1.config.run import load_config
from dpa1.errors import UserError
from dpa1.model.file import load_model
from dpa1.training.run import train
from tests.training.toy import emt_frames, labelled, toy_config


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_leaves_everything_behind(tmp_path, capsys):
    write(tmp_path / "test.xyz", emt_frames(3, seed=9))
    config = toy_config(
        tmp_path, data={"test": str(tmp_path / "test.xyz")}, loss={"virial": [0.02, 1]},
        training={"steps": 150, "learning_rate": 0.01, "keep_checkpoints": 1, "checkpoint_every": 50},
    )  # fmt: skip
    result = train(config)
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "best.dpa1", "checkpoints", "config.yaml", "errors.json", "metrics.csv", "model.dpa1", "train.log",
    ]  # fmt: skip
    assert len(list((folder / "checkpoints").iterdir())) == 1
    table = rows(folder)
    assert [int(r["step"]) for r in table] == list(range(5, 151, 5))
    assert float(table[-1]["valid_force_rmse"]) < 0.8 * float(table[1]["valid_force_rmse"])
    assert result.test["n_frames"] == 3
    assert result.test["force_rmse"] == pytest.approx(
        json.loads((folder / "errors.json").read_text())["test"]["force_rmse"]
    )
    potential = load_model(result.model)
    assert potential.info["steps"] == 150
    assert potential.config.elements == ("Al", "Cu")
    assert potential.config.mean_neighbors is not None
    shown = capsys.readouterr().out
    log = (folder / "train.log").read_text()
    for text in (
        "run folder",
        "labels: energy 16, forces 16, virial 16",
        "meV/atom",
        "meV/Å",
        "steps/s",
        "left",
        "RMSE on 3 test",
    ):
        assert text in shown
        assert text in log
    # The complete configuration trains the same model again.
    again = load_config(folder / "config.yaml", {"output": str(tmp_path / "again")})
    second = load_model(train(again, quiet=True).model).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in potential.state_dict().items())


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = toy_config(tmp_path, seed=seed, output=str(tmp_path / name), training={"steps": 5})
        weights.append(load_model(train(config, quiet=True).model).fitting.output.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_early_stopping_and_best_model(tmp_path):
    config = toy_config(
        tmp_path,
        training={"steps": 400, "valid_every": 5, "patience": 3, "learning_rate": 0.5, "schedule": {"kind": "constant"},
                  "valid_metric": "force_rmse", "refit_bias": False},
    )  # fmt: skip
    result = train(config, quiet=True)
    assert result.steps < 400
    table = [float(r["valid_force_rmse"]) for r in rows(tmp_path / "run")]
    assert len(table) - 1 - table.index(min(table)) == 3
    assert result.valid["force_rmse"] == pytest.approx(min(table), rel=1e-6)


def test_frame_weights_and_source_weights_act(tmp_path):
    losses = []
    for name, weight in (("a", 1.0), ("b", 3.0)):
        toy_config(tmp_path)
        config = toy_config(tmp_path, output=str(tmp_path / name), training={"steps": 5})
        config["data"] = {"train": [{"path": str(tmp_path / "train.xyz"), "weight": weight}], "valid": None}
        train(config, quiet=True)
        losses.append(float(rows(tmp_path / name)[0]["train_loss"]))
    assert losses[1] == pytest.approx(3 * losses[0], rel=0.1)


def test_epochs_become_steps(tmp_path):
    config = toy_config(tmp_path)
    del config["training"]["steps"]
    config["training"]["epochs"] = 2.5
    assert train(config, quiet=True).steps == 20  # 16 frames in batches of 2
    assert "epochs" not in yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]
    train(config, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"stps": 3}}, ["training.stps", "did you mean 'steps'"]),
        ({"training": {"learning_rate": -1}}, ["training.learning_rate", "greater than 0"]),
        ({"training": {"batch_atoms": 10}}, ["batch_atoms and batch_frames", "keep one"]),
        ({"training": {"schedule": {"kind": "exponental"}}}, ["training.schedule.kind"]),
        ({"training": {"schedule": {"warmup_steps": 20}}}, ["warmup_steps", "shorten it"]),
        ({"training": {"device": "gpu"}}, ["training.device", "gpu"]),
        ({"training": {"patience": 2}, "data": {"valid": None}}, ["patience", "data.valid"]),
        ({"loss": {"energy": 0, "force": 0}}, ["every prefactor is 0"]),
        ({"loss": {"forces": 1}}, ["loss.forces", "did you mean 'force'"]),
        ({"data": {"train": "nowhere.xyz"}}, ["nowhere.xyz"]),
        ({"modell": {}}, ["modell", "did you mean 'model'"]),
        ({"loggers": ["tensorbord"]}, ["loggers"]),
    ],
)
def test_wrong_configurations_get_one_sentence(tmp_path, sections, words):
    with pytest.raises(UserError) as caught:
        train(toy_config(tmp_path, **sections), quiet=True)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path):
    import typer

    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(toy_config(tmp_path)))
    output = tmp_path / "elsewhere"
    call = [
        "train",
        str(path),
        "--output",
        str(output),
        "--seed",
        "4",
        "training.steps=3",
        "training.schedule.stop=1e-4",
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    written = yaml.safe_load((output / "config.yaml").read_text())
    assert (written["seed"], written["training"]["steps"], written["training"]["schedule"]["stop"]) == (4, 3, 1e-4)
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, UserError)
    assert "already holds a run" in str(again.exception)
    assert CliRunner().invoke(app, [*call, "--resume"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["train", str(path), "training.steps"])
    assert "must look like training.steps=500" in str(wrong.exception)


def test_prefactors_turn_terms_off(tmp_path):
    train(toy_config(tmp_path, loss={"force": 0, "energy": 1}, training={"steps": 5}), quiet=True)
    last = rows(tmp_path / "run")[-1]
    assert last["train_force_rmse"] == ""
    assert math.isfinite(float(last["valid_force_rmse"]))


def test_an_element_with_a_place_but_no_data_counts_as_unseen(tmp_path):
    config = toy_config(tmp_path, model={"elements": ["Al", "Ni", "Cu"]}, training={"steps": 5})
    result = train(config)
    potential = load_model(result.model)
    assert load_model(result.folder / "best.dpa1").trained_elements == ("Al", "Cu")
    assert potential.elements == ("Al", "Ni", "Cu")
    assert potential.trained_elements == ("Al", "Cu")
    atoms = emt_frames(1)[0]
    atoms.calc = None
    atoms.numbers[0] = 28
    with pytest.raises(UserError, match="does not know Ni; it knows Al, Cu"):
        potential.calculator().get_potential_energy(atoms)


# An isolated atom is held exact, so what binds copper (3.5 eV) is not in the bias but left to training.
@pytest.mark.parametrize(("isolated", "most"), [(False, 0.2), (True, 3.6)])
def test_a_new_level_gets_the_energies_of_its_own_elements_rare_ones_too(isolated, most, tmp_path):
    model = load_model(train(toy_config(tmp_path), quiet=True).model)
    frames = emt_frames(60, seed=9, elements=("Cu",))
    frames[7].numbers[0] = 13
    if isolated:
        frames.append(Atoms("Cu", cell=[30, 30, 30], pbc=True))
    for atoms in map(labelled, frames):
        atoms.calc.results["energy"] += -700.0 * (atoms.numbers == 29).sum() - 50.0 * (atoms.numbers == 13).sum()
    write(tmp_path / "far.xyz", frames)
    data = {
        "train": [
            {"path": str(tmp_path / f"{name}.xyz"), "level": level}
            for name, level in (("far", "far"), ("train", "default"))
        ]
    }
    data["valid"] = None
    config = toy_config(
        tmp_path,
        data=data,
        training={"steps": 1, "learning_rate": 1e-30, "refit_bias": not isolated},
        loss={"kind": "huber"},
        output=str(tmp_path / "new"),
    )
    run = train(config, quiet=True, initial=model)
    errors = dpa1.evaluate(load_model(run.model), dpa1.read(str(tmp_path / "far.xyz")), level="far")
    assert errors["energy_mae"] < most


def test_a_run_may_start_from_a_model(tmp_path):
    """Architecture, statistics and weights are the model's; what does not fit is refused before anything is written."""
    model = load_model(train(toy_config(tmp_path), quiet=True).model)
    short = {"steps": 1, "learning_rate": 1e-4}

    def go_on(**changes):
        config = toy_config(tmp_path, **{"training": short, "output": str(tmp_path / "second")} | changes)
        return train(config, quiet=True, initial=model)

    with pytest.raises(UserError, match=r"'model\.axis' is 3, but the model to go on with has 4"):
        go_on(model={"axis": 3})
    write(tmp_path / "gold.xyz", emt_frames(5, elements=("Au", "Al")))
    with pytest.raises(UserError, match="hold Au, which the model to go on with does not know"):
        go_on(data={"train": str(tmp_path / "gold.xyz")})
    with pytest.raises(UserError, match="holds the level of theory default, which no training frame has"):
        go_on(data={"train": {"path": str(tmp_path / "train.xyz"), "level": "other"}})
    assert not (tmp_path / "second").exists()
    write(tmp_path / "more.xyz", emt_frames(6, seed=9))
    more = load_model(
        go_on(
            data={
                "train": [
                    {"path": str(tmp_path / "more.xyz"), "level": "other"},
                    {"path": str(tmp_path / "train.xyz"), "level": "default"},
                ]
            },
            output=str(tmp_path / "third"),
        ).model
    )
    assert more.levels == ("default", "other") or more.levels == ("other", "default")
    assert "new level of theory other: starts from default" in (tmp_path / "third" / "train.log").read_text()
    after = load_model(go_on().model)
    assert torch.equal(after.descriptor.scale, model.descriptor.scale)
    moved = after.fitting.output.weight - model.fitting.output.weight
    assert 0.0 < moved.abs().max() < 1e-3
    given = go_on(training={**short, "energy_bias": {"Cu": -3.5}}, output=str(tmp_path / "fourth"))
    assert load_model(given.model).energy_bias[0, model.elements.index("Cu")] == -3.5
