"""With tables and without attention, atoms evaluated from their pairs alone are the same as from rows of neighbours."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.frames import make_frame
from dpa1.kernels import compiled_pairs, dispatch, reference
from dpa1.model import by_pairs, memory
from dpa1.model.potential import Potential
from tests.contracts.systems import (
    CUTOFF,
    ELEMENTS,
    NUMBERS,
    example_options,
    option_sets,
    random_frame,
    random_potential,
)

KEYS = ("energy", "atomic_energy", "forces", "virial", "descriptor")


@pytest.fixture
def spans(monkeypatch):
    """The spans that are evaluated."""
    seen, evaluate = [], by_pairs.evaluate

    def watched(potential, view, level, lookup, span, derive):
        seen.append(span)
        return evaluate(potential, view, level, lookup, span, derive)

    monkeypatch.setattr(by_pairs, "evaluate", watched)
    return seen


def tabulated(options, seed=0, precision="float64", spans=None):
    found = random_potential(options, seed).set_precision(precision).tabulated(1e-3, ELEMENTS)
    if spans:
        spans.clear()  # of what building the tables took
    return found


def from_rows(potential, batch, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(by_pairs, "lookup_of", lambda *_: None)
        return potential.predict(batch, descriptor=True, **options)


def agree(found, expected, tolerance=1e-11):
    for key in KEYS:
        scale = expected[key].abs().max().clamp(min=1.0)
        assert float((found[key] - expected[key]).abs().max() / scale) < tolerance, key


@settings(deadline=None, max_examples=25)
@given(options=option_sets(), seed=st.integers(0, 1000), pbc=st.sampled_from([True, False, (True, False, True)]))
def test_the_same_from_pairs_and_from_rows(options, seed, pbc):
    potential = tabulated(options | {"attention_layers": 0, "type_input": "concat"}, seed)
    isolated = make_frame([8], [[0.0, 0.0, 0.0]])
    frames = [random_frame(seed, 9, pbc), isolated, random_frame(seed + 1, 4, pbc), isolated]
    batch = make_batch(frames, CUTOFF)
    with pytest.MonkeyPatch.context() as patch:
        agree(potential.predict(batch, descriptor=True), from_rows(potential, batch, patch))


@pytest.mark.parametrize("options", [{}, {"convention": "deepmd", "sel": 40, "mean_neighbors": None}])
def test_blocks_and_threads_change_nothing(options, spans, monkeypatch):
    potential = tabulated(example_options(attention_layers=0, **options), spans=spans)
    batch = make_batch([random_frame(seed, 12) for seed in range(3)], CUTOFF)
    expected = from_rows(potential, batch, monkeypatch)
    assert not spans
    monkeypatch.setattr(memory, "block_slots", lambda *_: 40)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agree(potential.predict(batch, descriptor=True), expected)
    finally:
        torch.set_num_threads(before)
    assert len(spans) > 3
    assert sorted(n for span in spans for n in range(span.atoms.start, span.atoms.stop)) == list(range(36))
    energy = potential.predict(batch, forces=False, virial=False)["energy"]
    assert torch.allclose(energy, expected["energy"], rtol=1e-12)


def test_single_precision(spans, monkeypatch):
    potential = tabulated(example_options(attention_layers=0), precision="float32", spans=spans)
    batch = make_batch([random_frame(5, 12)], CUTOFF)
    agree(potential.predict(batch, descriptor=True), from_rows(potential, batch, monkeypatch), 1e-5)
    assert spans


def test_too_little_memory_halves_the_spans(spans, monkeypatch):
    potential = tabulated(example_options(attention_layers=0), spans=spans)
    batch = make_batch([random_frame(1, 12)], CUTOFF)
    expected = from_rows(potential, batch, monkeypatch)
    evaluate = by_pairs.evaluate

    def small(potential, view, level, lookup, span, derive):
        if span.slots > 150:
            raise MemoryError
        return evaluate(potential, view, level, lookup, span, derive)

    monkeypatch.setattr(by_pairs, "evaluate", small)
    agree(potential.predict(batch, descriptor=True), expected)
    assert len(spans) > 1
    assert all(span.slots <= 150 for span in spans)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_layers": 1},
        {"type_input": "strip"},
        {"exclude_pairs": (("H", "Cu"),)},
        {"convention": "deepmd", "subtract_mean": True, "sel": 40, "mean_neighbors": None},
    ],
)
def test_what_needs_rows_has_them(options, spans):
    potential = tabulated(example_options(**{"attention_layers": 0, **options}), spans=spans)
    potential.predict(make_batch([random_frame(1)], CUTOFF))
    assert not spans


def test_atoms_closer_than_the_tables_reach_have_rows(spans):
    potential = tabulated(example_options(attention_layers=0), spans=spans)
    near, far = (make_frame([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, r]]) for r in (0.49, 0.51))
    potential.predict(make_batch([near], CUTOFF))
    assert not spans
    potential.predict(make_batch([far], CUTOFF))
    assert spans
    assert compiled_pairs.closest(torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, -1.5]], dtype=torch.float64)) == 1.5


def test_loops_that_disagree_are_not_used(spans, monkeypatch, caplog):
    potential = tabulated(example_options(attention_layers=0), spans=spans)
    batch = make_batch([random_frame(1)], CUTOFF)
    expected = potential.predict(batch, descriptor=True)
    assert spans
    spans.clear()
    monkeypatch.setattr(compiled_pairs, "run", lambda *given: 1.01 * reference.tabulated_pairs(*given))
    dispatch.proven.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="dpa1"):
            agree(potential.predict(batch, descriptor=True), expected)
    finally:
        dispatch.proven.cache_clear()
    assert not spans
    assert dispatch.PAIRS.title in caplog.text


def test_an_atom_of_every_element_has_its_own_statistics(monkeypatch):
    potential = random_potential(example_options(attention_layers=0))
    with torch.no_grad():
        potential.descriptor.mean.copy_(torch.tensor([0.1, 0.2, 0.05]))
        potential.descriptor.scale.copy_(torch.tensor([[0.3, 0.5], [0.6, 0.2], [1.1, 0.7]]))
    tables = potential.tabulated(1e-3, ELEMENTS)
    batch = make_batch([random_frame(seed, 9) for seed in range(4)], CUTOFF)
    assert set(batch.numbers.tolist()) == set(NUMBERS)
    agree(tables.predict(batch, descriptor=True), from_rows(tables, batch, monkeypatch))


def test_each_frame_at_its_own_level(monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig(**example_options(attention_layers=0, fitting_per_level=True))
    potential = Potential(config, ["a", "b"])
    torch.nn.init.normal_(potential.energy_bias)
    tables = potential.tabulated(1e-3, ELEMENTS)
    frames = [random_frame(seed, 5) for seed in range(4)]
    batch = replace(make_batch(frames, CUTOFF), level=torch.tensor([0, 1, 1, 0]))
    monkeypatch.setattr(memory, "block_slots", lambda *_: 150)
    agree(tables.predict(batch, descriptor=True), from_rows(tables, batch, monkeypatch))
