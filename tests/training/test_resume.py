"""A run that is killed and resumed is the run that was never interrupted, bit by bit on one thread."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from dpa1.container import write_container
from dpa1.errors import UserError
from dpa1.model.file import load_model
from dpa1.training.checkpoint import checkpoints, latest, read_checkpoint
from dpa1.training.folder_lock import lock
from dpa1.training.run import train
from tests.training.toy import toy_config

COMMAND = "import sys; from dpa1.training.run import train; train(sys.argv[1], resume=sys.argv[2] == 'resume')"
TRAINING = {"steps": 150, "checkpoint_every": 7, "log_every": 10, "valid_every": 20, "ema": 0.99}


def start(path, mode="start"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(path), mode],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def config_file(tmp_path, name, **training):
    config = toy_config(tmp_path, training={**TRAINING, **training}, output=str(tmp_path / name))
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def wait_for_checkpoint(process, folder, step=0):
    """Until there is one of this step or a later one."""
    deadline = time.monotonic() + 120
    while not any(int(path.stem.rpartition("-")[2]) >= step for path in checkpoints(folder / "checkpoints")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def rows(folder):
    """metrics.csv without the column that holds the time."""
    return [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def test_sigkill_at_a_random_moment_then_resume_is_bitwise(tmp_path):
    process = start(config_file(tmp_path, "killed"))
    wait_for_checkpoint(process, tmp_path / "killed", random.randint(1, 90))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step = read_checkpoint(latest(tmp_path / "killed/checkpoints"))[0]["step"]
    assert step < 150, "the run was over before it was killed"
    resumed = start(tmp_path / "killed.yaml", "resume")
    output, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    assert "continuing from" in output
    whole = train(config_file(tmp_path, "whole"), quiet=True)
    models = [load_model(p) for p in (whole.model, tmp_path / "killed/model.dpa1")]
    expected, found = (model.state_dict() for model in models)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert models[0].info["trained_elements"] == models[1].info["trained_elements"]
    assert set(models[0].info) == set(models[1].info)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_sigterm_writes_a_checkpoint_and_says_so(tmp_path):
    process = start(config_file(tmp_path, "run", checkpoint_every=1000, steps=5000))
    log = tmp_path / "run/train.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "step " in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"dpa1 train {tmp_path / 'run/config.yaml'} --resume" in errors
    path = latest(tmp_path / "run/checkpoints")
    assert path is not None
    assert path.name in errors


def test_a_run_that_goes_on_keeps_others_out(tmp_path):
    process = start(config_file(tmp_path, "run", steps=5000))
    wait_for_checkpoint(process, tmp_path / "run")
    again = start(tmp_path / "run.yaml", "resume")
    _, errors = again.communicate(timeout=100)
    assert again.returncode == 1
    assert "another run is writing to it" in errors
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with lock(tmp_path / "run"), pytest.raises(UserError, match="another run is writing to it"):
        lock(tmp_path / "run")


def test_resume_refuses_another_run(tmp_path):
    config = toy_config(tmp_path)
    with pytest.raises(UserError, match="holds no run to resume"):
        train(config, resume=True, quiet=True)
    train(config, quiet=True)
    before = (tmp_path / "run/metrics.csv").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(config, quiet=True)
    changed = toy_config(tmp_path, training={"learning_rate": 0.1})
    with pytest.raises(UserError, match=r"training\.learning_rate.*0\.002.*0\.1"):
        train(changed, resume=True, quiet=True)
    assert (tmp_path / "run/metrics.csv").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing_but_time(tmp_path):
    config = toy_config(tmp_path)
    first = load_model(train(config, quiet=True).model).state_dict()
    again = load_model(train(config, resume=True, quiet=True).model).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("damage", ["truncate", "flip", "pickle", "newer", "model"])
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(tmp_path, damage):
    config = toy_config(tmp_path, training={"checkpoint_every": 10})
    train(config, quiet=True)
    path = checkpoints(tmp_path / "run/checkpoints")[-1]
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-20] ^= 1
        path.write_bytes(content)
    elif damage == "pickle":
        torch.save({"a": torch.zeros(3)}, path)
    elif damage == "newer":
        write_container(path, "checkpoint", 99, {}, {"a": torch.zeros(1)})
    else:
        path.write_bytes((tmp_path / "run/model.dpa1").read_bytes())
    with pytest.raises(UserError, match=path.name):
        train(config, resume=True, quiet=True)
    # A half-written file of a killed process has another name and is not looked at.
    path.rename(path.with_name(f".{path.name}.123.part"))
    train(config, resume=True, quiet=True)
