"""Two processes with one batch each are one process with the doubled batch; SLURM and torchrun are recognised."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from dpa1.errors import UserError
from dpa1.training.distributed import join, place_of_process
from dpa1.training.run import train
from tests.training.toy import toy_config

COMMAND = "import sys; from dpa1.training.run import train; train(sys.argv[1])"


def curve(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: float(v) for key, v in row.items() if v and key != "seconds"} for row in rows]


def run_two(config, folder, command=COMMAND):
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    script = folder / "run.py"
    script.write_text(command)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, str(script), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    # 17 training frames in batches of 4 and 2: the epochs end within steps, and the last batches are not full.
    common = {"model": {"precision": "float64"}, "data": {"valid": 3 / 20}}

    def config(name, **training):
        return toy_config(tmp_path, **common, training={"ema": 0.9, **training}, output=str(tmp_path / name))

    done = run_two(config("two", batch_frames=2), tmp_path)
    if "terminate called without an active exception" in done.stderr:
        # About one time in thirty, on a busy machine, one process aborts so; neither the cause nor the moment is known yet.
        shutil.rmtree(tmp_path / "two")
        done = run_two(config("two", batch_frames=2), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    train(config("one", batch_frames=2, accumulate=2), quiet=True)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-8)


def test_one_process_with_a_doubled_batch_has_the_same_curve(tmp_path):
    common = {"model": {"precision": "float64"}}  # 16 training frames
    for name, training in (("joint", {"batch_frames": 4}), ("split", {"batch_frames": 2, "accumulate": 2})):
        train(toy_config(tmp_path, **common, training=training, output=str(tmp_path / name)), quiet=True)
    for a, b in zip(curve(tmp_path / "joint"), curve(tmp_path / "split"), strict=True):
        assert a == pytest.approx(b, rel=1e-8)


def test_places(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    assert place_of_process() == (0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert place_of_process() == (0, 1, 0)  # an sbatch script without srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[03-05],login1")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("PATH", "")
    assert place_of_process() == (5, 8, 1)
    assert os.environ["MASTER_ADDR"] == "gpu03"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place_of_process() == (1, 2, 1)


@pytest.mark.parametrize(("device", "why"), [("gpu", "unknown name"), ("mps", "cannot compute in float64")])
def test_unsuitable_device(device, why):
    with pytest.raises(UserError, match=f"training.device: .*{why}|training.device: {why}"):
        join(device)
