"""The packed store: bitwise what went in, described by itself, quick to open, flat in memory."""

import json
import os
import pickle
import threading
import time

import numpy as np
import pytest

from dpa1.data.dataset import open_dataset
from dpa1.data.pack import pack
from dpa1.data.read import read
from dpa1.data.store import Store, write_store
from dpa1.data.table import table_of
from dpa1.errors import UserError
from dpa1.frames import Frame
from tests.data.common import FILES

SOURCES = [FILES / "mlearn_Ge.xyz", FILES / "oxides.xyz", FILES / "bpa.xyz"]


@pytest.fixture
def store(tmp_path):
    pack(SOURCES, tmp_path / "all.dpa1data", level="pbe")
    return tmp_path / "all.dpa1data"


def assert_equal(a: Frame, b: Frame) -> None:
    for key in Frame.__dataclass_fields__:
        x, y = getattr(a, key), getattr(b, key)
        assert (x is None) == (y is None), key
        if x is not None:
            np.testing.assert_array_equal(x, y)


def test_frames_come_back_bitwise(store):
    frames = [frame.replace(level="pbe") for frame in read(SOURCES)]
    with Store(store) as packed:
        for i in np.random.default_rng(0).permutation(len(frames)):
            assert_equal(packed[int(i)], frames[i])
        assert_equal(packed[-1], frames[-1])
        with pytest.raises(IndexError):
            packed[len(frames)]
    for frame, other in zip(read(store), frames, strict=True):
        assert_equal(frame, other)


def test_all_labels_and_strange_frames(tmp_path):
    frame = Frame(
        numbers=np.array([118, 1]), positions=np.array([[1e3, -5, 0], [0, 0, 1.0]]), cell=-np.eye(3) * 3,
        pbc=np.array([True, False, True]), energy=-1.0, forces=np.ones((2, 3)), virial=np.arange(9.0).reshape(3, 3),
        atomic_energies=np.array([0.5, -1.5]), weight=3.0, source="somewhere", index=7, level="r2scan",
    )  # fmt: skip
    bare = frame.replace(energy=None, forces=None, virial=None, atomic_energies=None, level=None)
    write_store([frame, bare], tmp_path / "s")
    with Store(tmp_path / "s") as packed:
        assert_equal(packed[0], frame)
        assert_equal(packed[1], bare)
        # what is read may be changed and handed to torch
        packed[0].positions[0] = 0.0


def test_it_describes_itself(store):
    with Store(store) as packed:
        meta = packed.meta
        assert meta["units"]["energy"] == "eV"
        assert meta["elements"] == ["H", "C", "N", "O", "Ti", "Ge", "Sn", "Ir"]
        assert meta["levels"] == ["pbe"]
        assert meta["sources"] == [str(path) for path in SOURCES]
        assert meta["read"][0]["taken"]["energy"] == {"energy": 6}
        json.dumps(meta)
        expected = table_of(frame.replace(level="pbe") for frame in read(SOURCES))
        for name in type(expected).__dataclass_fields__:
            np.testing.assert_array_equal(getattr(packed.table, name), getattr(expected, name))


def test_newer_version_and_foreign_files(store, tmp_path):
    raw = bytearray(store.read_bytes())
    raw[8] = 99
    (tmp_path / "new").write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"version 99.*update dpa1"):
        Store(tmp_path / "new")
    (tmp_path / "other").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="not a packed store"):
        Store(tmp_path / "other")
    (tmp_path / "short").write_bytes(store.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        Store(tmp_path / "short")


def test_threads_and_processes_share_one_store(store):
    packed = Store(store)
    expected = [packed[i].positions.sum() for i in range(len(packed))]
    failures = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, len(packed), 200):
            if packed[int(i)].positions.sum() != expected[i]:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert_equal(pickle.loads(pickle.dumps(packed))[3], packed[3])


def test_weights_and_levels_of_a_source(store):
    from dpa1.config.base import parse
    from dpa1.config.data import SourceConfig

    source = parse(SourceConfig, {"path": str(store), "weight": 2, "level": "other"}, "test")
    dataset = open_dataset([source, SOURCES[0]])
    assert dataset[0].weight == 2.0
    assert dataset[0].level == "other"
    assert dataset[len(dataset) - 1].weight == 1.0
    assert dataset.table.levels == ("other",)
    assert dataset.table.level[-1] == -1


@pytest.mark.slow
def test_a_hundred_thousand_frames(tmp_path):
    """Opening reads the index only; memory stays flat while streaming; reading is fast."""
    template = read(FILES / "oxides.xyz")
    random = np.random.default_rng(0)

    def noisy(n: int):
        for k in range(n):
            frame = template[k % len(template)]
            yield frame.replace(positions=frame.positions + 0.01 * random.normal(size=frame.positions.shape))

    write_store(noisy(100_000), tmp_path / "s")
    start = time.perf_counter()
    packed = Store(tmp_path / "s")
    assert time.perf_counter() - start < 1.0
    before = _resident()
    start = time.perf_counter()
    for i in random.permutation(len(packed)):
        packed[int(i)]
    rate = len(packed) / (time.perf_counter() - start)
    assert rate > 10_000
    assert _resident() - before < 30e6


def _resident() -> float:
    with open(f"/proc/{os.getpid()}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
