"""Datasets: joined, split and subset without losing or doubling a frame."""

import numpy as np
import pytest

from dpa1.config.base import parse
from dpa1.config.data import DataConfig
from dpa1.data.dataset import ConcatDataset, ListDataset, open_dataset
from dpa1.data.pack import pack
from dpa1.data.parts import open_data
from dpa1.data.read import read
from dpa1.errors import UserError
from tests.data.common import FILES


def names(dataset) -> list[str]:
    return [frame.name for frame in dataset]


def test_joined_from_lists_and_stores(tmp_path):
    pack(FILES / "oxides.xyz", tmp_path / "s.dpa1data")
    dataset = open_dataset([FILES / "bpa.xyz", tmp_path / "s.dpa1data", FILES / "mlearn_Ge.xyz"])
    assert names(dataset) == names(read([FILES / "bpa.xyz", FILES / "oxides.xyz", FILES / "mlearn_Ge.xyz"]))
    assert dataset.elements == ["H", "C", "N", "O", "Ti", "Ge", "Sn", "Ir"]
    assert dataset.coverage == {"energy": 47, "forces": 43, "virial": 39, "atomic_energies": 0}
    assert [dataset.n_atoms(i) for i in range(len(dataset))] == [len(frame) for frame in dataset]
    np.testing.assert_array_equal(dataset.table.energy, [frame.energy for frame in dataset])
    assert len(dataset.report.sources) == 3


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_split_is_complete_seeded_and_keeps_what_the_scale_rests_on(fraction):
    dataset = open_dataset([FILES / "bpa.xyz", FILES / "oxides.xyz"])
    train, valid = dataset.split(fraction, seed=3)
    assert sorted(names(train) + names(valid)) == sorted(names(dataset))
    assert len(train) > 0 < len(valid)
    assert (valid.sizes > 1).all()
    assert train.elements == dataset.elements
    again = dataset.split(fraction, seed=3)
    assert names(again[1]) == names(valid)
    if fraction == 0.5:
        assert names(dataset.split(fraction, seed=4)[1]) != names(valid)


def test_split_of_one_frame_is_an_error():
    with pytest.raises(UserError, match="hold out"):
        ListDataset(read(FILES / "bpa.xyz")[:1]).split(0.1, 0)


def test_subsets_of_subsets():
    dataset = open_dataset(FILES / "oxides.xyz")
    part = dataset.subset([5, 3, 9]).subset([2, 0])
    assert [frame.index for frame in part] == [9, 5]
    np.testing.assert_array_equal(part.table.energy, [frame.energy for frame in part])
    np.testing.assert_array_equal(part.table.take(np.array([1])).z, np.unique(part[1].numbers))
    joined = ConcatDataset([part, part])
    assert len(joined) == 4
    assert joined[-1].index == 5
    with pytest.raises(IndexError):
        joined[4]


def test_data_section():
    def section(**values):
        return parse(DataConfig, values, "run.yaml")

    parts = open_data(section(train=str(FILES / "oxides.xyz"), test=[str(FILES / "bpa.xyz")]), seed=1)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (30, 3, 8)
    for none in (None, 0, 0.0):
        assert open_data(section(train=str(FILES / "oxides.xyz"), valid=none), seed=1)[1:] == (None, None, [], 0)
    for values, sentence in (
        ({"train": "a", "valid": 1.5}, "'valid'.*between 0 and 1"),
        ({"train": "a", "test": 0}, "'test'.*between 0 and 1"),
        ({"trian": "a"}, "did you mean 'train'"),
        ({"train": []}, "names no data"),
        ({"train": {"path": "a", "wieght": 1}}, "did you mean 'weight'"),
        ({"train": {"path": "a", "weight": -1}}, "greater than 0"),
        ({"train": "a", "type_map": ["Cv"]}, "unknown element symbol 'Cv'"),
    ):
        with pytest.raises(UserError, match=sentence):
            section(**values)


def test_labels_of_one_source_win_over_those_of_all(tmp_path):
    text = '1\nProperties=species:S:1:pos:R:3 energy=1 odd=2 even=3 pbc="F F F"\nH 0 0 0\n'
    for name in ("a.xyz", "b.xyz"):
        (tmp_path / name).write_text(text)
    config = parse(
        DataConfig,
        {"train": [str(tmp_path / "a.xyz"), {"path": str(tmp_path / "b.xyz"), "labels": {"energy": "odd"}}],
         "labels": {"energy": "even"}, "valid": None},
        "test",
    )  # fmt: skip
    assert open_data(config, 0)[0].table.energy.tolist() == [3.0, 2.0]
    with pytest.raises(UserError, match="no frame has 'none'"):
        open_dataset(tmp_path / "a.xyz", {"energy": "none"})
