"""The log says how much of the time went into waiting for data."""

import re
import time

from dpa1.data.loader import Loader
from dpa1.training.run import train
from tests.training.toy import toy_config


def share(folder):
    found = re.search(r"waiting for data took ([\d.]+) % of the time", (folder / "train.log").read_text())
    assert found
    return float(found[1])


def test_share_of_a_slow_source(tmp_path, monkeypatch):
    make = Loader.make

    def slow(self, indices):
        time.sleep(0.2)
        return make(self, indices)

    monkeypatch.setattr(Loader, "make", slow)
    config = toy_config(tmp_path, training={"steps": 5, "refit_bias": False, "prefetch": False})
    train({**config, "output": str(tmp_path / "run")}, quiet=True)
    assert 30 < share(tmp_path / "run") <= 100
