"""The sampler: every frame once, within the budget, shared without doubles, continued exactly."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.data.dataset import open_dataset
from dpa1.data.loader import Loader
from dpa1.data.sampler import Budget, Sampler, estimate_pairs, evaluation_batches
from dpa1.errors import UserError
from dpa1.neighbors import find_neighbors
from tests.data.common import FILES

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=60).map(np.array)
budgets = st.builds(Budget, st.sampled_from(["atoms", "pairs", "frames"]), st.integers(1, 80))


@given(sizes, budgets, st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None)
def test_every_frame_once_within_the_budget(sizes, budget, seed, epoch):
    batches = Sampler(sizes, budget, seed).batches(epoch)
    assert sorted(np.concatenate(list(batches))) == list(range(len(sizes)))
    for batch in batches:
        cost = len(batch) if budget.kind == "frames" else sizes[batch].sum()
        assert cost <= budget.value or len(batch) == 1
    # greedy: no two neighbours would fit together
    for a, b in pairwise(batches):
        first = 1 if budget.kind == "frames" else sizes[b[0]]
        cost = len(a) if budget.kind == "frames" else sizes[a].sum()
        assert cost + first > budget.value


@given(sizes, budgets, st.integers(1, 5), st.integers(0, 3), st.integers(0, 40))
@settings(deadline=None)
def test_ranks_together_are_one_process(sizes, budget, world, seed, steps):
    alone = Sampler(sizes, budget, seed)
    ranks = [Sampler(sizes, budget, seed, rank, world) for rank in range(world)]
    for _ in range(steps):
        for rank in ranks:
            np.testing.assert_array_equal(rank.next(), alone.next())
    states = [rank.state_dict() for rank in ranks]
    assert all(state == states[0] for state in states)
    assert states[0] == alone.state_dict()


@given(sizes, budgets, st.integers(0, 30), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_continued_exactly_even_with_another_world(sizes, budget, steps, world, other):
    sampler = Sampler(sizes, budget, 1, 0, world)
    for _ in range(steps):
        sampler.next()
    state = json.loads(json.dumps(sampler.state_dict()))
    again = Sampler(sizes, budget, 1, 0, world)
    again.load_state_dict(state)
    single = Sampler(sizes, budget, 1, 0, other)
    single.load_state_dict(state)
    for _ in range(5):
        expected = sampler.next()
        np.testing.assert_array_equal(again.next(), expected)
    assert again.state_dict() == sampler.state_dict()
    single.next()


def test_another_stream_is_refused():
    state = Sampler(np.arange(1, 9), Budget("atoms", 8), 1).state_dict()
    for other in (Sampler(np.arange(1, 9), Budget("atoms", 8), 2), Sampler(np.arange(1, 8), Budget("atoms", 8), 1),
                  Sampler(np.arange(1, 9), Budget("atoms", 9), 1)):  # fmt: skip
        with pytest.raises(UserError, match="cannot continue"):
            other.load_state_dict(state)
    for call in (lambda: Budget("atoms", 0), lambda: Sampler(np.array([]), Budget("atoms", 8), 1),
                 lambda: Sampler(np.ones(3), Budget("atoms", 8), 1, weights=[1, 2])):  # fmt: skip
        with pytest.raises(UserError):
            call()


def test_epochs_and_seeds_differ_and_order_can_be_kept():
    sizes = np.ones(50, dtype=int)

    def order(seed, epoch, **options):
        return np.concatenate(list(Sampler(sizes, Budget("frames", 4), seed, **options).batches(epoch))).tolist()

    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert order(0, 0) == order(0, 0)
    assert order(0, 5, shuffle=False) == list(range(50))
    drawn = np.bincount(order(0, 0, weights=np.arange(50)), minlength=50)
    assert drawn.sum() == 50
    assert drawn[0] == 0


@given(sizes, budgets, st.integers(1, 5))
@settings(deadline=None)
def test_evaluation_sees_each_frame_once(sizes, budget, world):
    shares = [evaluation_batches(sizes, budget, rank, world) for rank in range(world)]
    seen = [int(i) for share in shares for batch in share for i in batch]
    assert sorted(seen) == list(range(len(sizes)))


def test_a_million_frames_are_packed_quickly():
    sizes = np.random.default_rng(0).integers(1, 200, 1_000_000)
    start = time.perf_counter()
    assert len(Sampler(sizes, Budget("atoms", 256), 0).batches(0)) > 100_000
    # 0.5 s on a free core
    assert time.perf_counter() - start < 10.0


def test_pairs_are_estimated_well_enough():
    dataset = open_dataset([FILES / "oxides.xyz", FILES / "bpa.xyz"])
    estimate = estimate_pairs(dataset.sizes, dataset.table.volume, 5.0)
    true = np.array([len(find_neighbors(frame, 5.0).centre) for frame in dataset])
    ratio = (estimate / np.maximum(true, 1))[dataset.sizes > 1]
    assert ratio.min() > 0.5
    assert ratio.max() < 3.0


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("cache", [0, 100_000, 1 << 30])
def test_loader_continues_bitwise_whatever_was_prepared(prefetch, cache):
    dataset = open_dataset([FILES / "oxides.xyz", FILES / "bpa.xyz"])

    def loader(prefetch, cache):
        return Loader(dataset, Sampler(dataset.sizes, Budget("atoms", 60), 5), 4.0, cache, prefetch)

    first = loader(prefetch, cache)
    for _ in range(7):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    expected = [(next(first), first.indices) for _ in range(12)]
    first.close()
    second = loader(2 - prefetch, 1 << 30)
    second.load_state_dict(state)
    for batch, indices in expected:
        other = next(second)
        np.testing.assert_array_equal(second.indices, indices)
        assert other.names == batch.names == tuple(dataset[int(i)].name for i in indices)
        for name in ("positions", "numbers", "centre", "neighbor", "shift", "energy", "forces"):
            assert torch.equal(torch.nan_to_num(getattr(batch, name)), torch.nan_to_num(getattr(other, name)))
    assert first.state_dict() == second.state_dict()
    assert second.epochs > 1.0
    second.close()
    assert first.cache.used <= cache


def test_loader_hands_on_errors_from_its_thread(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0\n")
    dataset = open_dataset(tmp_path / "a.xyz")
    loader = Loader(dataset, Sampler(dataset.sizes, Budget("atoms", 8), 0), 4.0)
    with pytest.raises(UserError, match="atoms 0 and 1"):
        next(loader)
