"""The map of the elements: the periodic table is right, structure is found where there is some and only there."""

import csv

import numpy as np
import pytest
from ase.data import chemical_symbols

from dpa1.analysis.element_plots import element_figure
from dpa1.analysis.elements import ElementMap, compare, element_map, measure
from dpa1.errors import UserError
from dpa1.interop.load import load_potential
from dpa1.model.periodic import group, period
from tests.contracts.systems import example_options, random_potential

KNOWN = {
    "H": (1, 1), "He": (1, 18), "Li": (2, 1), "B": (2, 13), "Ne": (2, 18), "Al": (3, 13), "Ar": (3, 18), "K": (4, 1),
    "Sc": (4, 3), "Zn": (4, 12), "Ga": (4, 13), "Kr": (4, 18), "Y": (5, 3), "Ag": (5, 11), "Ba": (6, 2), "La": (6, None),
    "Ce": (6, None), "Yb": (6, None), "Lu": (6, 3), "Hf": (6, 4), "Au": (6, 11), "Pb": (6, 14), "Rn": (6, 18),
    "Ra": (7, 2), "Ac": (7, None), "U": (7, None), "No": (7, None), "Lr": (7, 3), "Rf": (7, 4), "Og": (7, 18),
}  # fmt: skip
MAIN = tuple(z for z in range(1, 87) if group(z) is not None)


def table_map(noise: float, seed: int = 0, scale: float = 1.0, rows: float = 3.0) -> ElementMap:
    """Elements placed by period (``rows`` apart) and group (1 apart), blurred alike for every seed, turned by the seed."""
    places = np.array([[rows * period(z), group(z)] for z in MAIN], dtype=float)
    places = np.pad(places, ((0, 0), (0, 6))) + noise * np.random.default_rng(0).normal(size=(len(MAIN), 8))
    vectors = scale * (places - places.mean(0)) @ np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0]
    return ElementMap(tuple(chemical_symbols[z] for z in MAIN), MAIN, (), vectors, vectors[:, :3], np.ones(3) / 3)


@pytest.mark.parametrize("symbol", KNOWN)
def test_places_in_the_periodic_table(symbol):
    number = chemical_symbols.index(symbol)
    assert (period(number), group(number)) == KNOWN[symbol]


def test_every_place_is_taken_once():
    places = [(period(z), group(z)) for z in range(1, 119)]
    assert sum(column is None for _, column in places) == 28
    grouped = [place for place in places if place[1] is not None]
    assert len(set(grouped)) == len(grouped) == 90


def test_components_are_those_of_the_covariance():
    potential = random_potential(example_options(elements=("O", "Cu", "H", "Al", "Si"), type_embedding=6))
    found = element_map(potential)
    assert found.symbols == ("H", "O", "Al", "Si", "Cu")
    assert (found.groups, found.periods) == ((1, 16, 13, 14, 11), (1, 2, 3, 3, 4))
    table = potential.descriptor.type_embedding().detach().numpy()[[2, 0, 3, 4, 1]]
    values, axes = np.linalg.eigh(np.cov(table.T))
    order = np.argsort(-values)[:4]
    np.testing.assert_allclose(found.explained, values[order] / values.sum(), atol=1e-12)
    expected = (table - table.mean(0)) @ axes[:, order]
    np.testing.assert_allclose(np.abs(found.components), np.abs(expected), atol=1e-10)


def test_a_common_shift_changes_nothing():
    options = example_options(type_embedding_bias=True, type_embedding=4)
    first, second = random_potential(options), random_potential(options)
    second.descriptor.type_embedding.net.layers[0].bias.data += 3.0
    np.testing.assert_allclose(element_map(first).components, element_map(second).components, atol=1e-12)


def test_unseen_elements_are_left_out_and_listed():
    potential = random_potential(example_options())
    potential.info["trained_elements"] = ["H", "Cu"]
    found = element_map(potential)
    assert (found.symbols, found.unseen) == (("H", "Cu"), ("O",))
    assert found.components.shape == (2, 1)
    potential.info["trained_elements"] = []
    with pytest.raises(UserError, match="none of its elements was trained"):
        element_map(potential)


@pytest.mark.parametrize("trained", [["O"], ["H", "O"]])
def test_few_elements(trained, tmp_path):
    potential = random_potential(example_options())
    potential.info["trained_elements"] = trained
    found = element_map(potential)
    found.write_csv(tmp_path / "e.csv")
    with (tmp_path / "e.csv").open() as file:
        assert [row["element"] for row in csv.DictReader(file)] == trained
    rows = [*measure(found), *compare(found, found)]
    assert len(rows) == 8
    assert all("are needed" in row["reason"] and "p" not in row for row in rows)


def test_symbols_of_many_elements_do_not_cover_each_other():
    """Most elements in a heap, some far away: the heap is enlarged, and symbols have room there."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(len(MAIN), 2)) * np.where(np.arange(len(MAIN)) < 8, 8.0, 0.5)[:, None]
    names = tuple(chemical_symbols[z] for z in MAIN)
    figure = element_figure(ElementMap(names, MAIN, (), points, points, np.ones(2) / 2))
    assert len(figure.axes) == 4
    figure.canvas.draw()
    texts = [{t.get_text() for t in axis.texts} for axis in figure.axes]
    assert texts[0] | texts[2] == texts[1] | texts[3] == set(names)
    boxes = [t.get_window_extent() for t in figure.axes[2].texts]
    covered = sum(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert covered <= 0.15 * len(boxes)
    few = ElementMap(names[:6], MAIN[:6], (), points[:6], points[:6], np.ones(2) / 2)
    assert len(element_figure(few).axes) == 2


def test_structure_is_found_where_there_is_some():
    apart, close = (measure(table_map(0.03, rows=rows), permutations=499) for rows in (3.0, 0.3))
    # The nearest element is of the same period where periods lie apart, and of the same group where they lie close.
    for row in (apart[0], close[3]):
        assert row["method"] == "nearest neighbour"
        assert row["value"] > 0.9
        assert row["p"] == pytest.approx(1 / 500)
        assert row["chance"] < 0.3
    assert apart[3]["value"] < 0.1
    for row in (apart[1], apart[4]):
        assert row["method"] == "ridge regression"
        assert row["value"] > 0.7
        assert row["p"] == pytest.approx(1 / 500)
    for row in (apart[2], apart[5]):
        assert row["method"].startswith("next in")
        assert row["value"] < 0.6
        assert row["chance"] == pytest.approx(1.0, abs=0.05)
        assert row["p"] == pytest.approx(1 / 500)


def test_ridge_leaves_each_element_out():
    found = table_map(2.0)
    row = next(
        r for r in measure(found, permutations=99) if (r["quantity"], r["method"]) == ("period", "ridge regression")
    )
    x, y = found.vectors, np.array(found.periods, dtype=float)
    penalty = 0.1 * np.trace(x.T @ x) / x.shape[1]
    residuals, totals = [], []
    for k in range(len(y)):
        rest = np.arange(len(y)) != k
        # The penalty weighs the slopes only; the intercept is a column of its own.
        design = np.column_stack([np.ones(rest.sum()), x[rest]])
        slopes = np.linalg.solve(design.T @ design + penalty * np.diag([0.0] + [1.0] * 8), design.T @ y[rest])
        residuals.append(y[k] - slopes @ [1.0, *x[k]])
        totals.append(y[k] - y[rest].mean())
    assert row["value"] == pytest.approx(1 - np.sum(np.square(residuals)) / np.sum(np.square(totals)), rel=1e-9)


def test_chance_is_called_chance():
    """Vectors that know nothing: p is uniform, so below 0.05 about once in twenty."""
    low = total = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(len(MAIN), 8))
        random = ElementMap(tuple(chemical_symbols[z] for z in MAIN), MAIN, (), vectors, vectors, np.ones(8) / 8)
        rows = measure(random, permutations=199)
        low += sum(row["p"] < 0.05 for row in rows)
        total += len(rows)
    assert low <= 0.2 * total


def test_seed_repeats_the_numbers():
    assert measure(table_map(5.0), 99, seed=3) == measure(table_map(5.0), 99, seed=3)
    assert measure(table_map(5.0), 99, seed=3) != measure(table_map(5.0), 99, seed=4)


def test_stability_ignores_rotation_and_scale_but_not_order():
    first, turned = table_map(0.5, seed=1), table_map(0.5, seed=2, scale=7.0)
    for row in compare(first, turned, permutations=199):
        assert row["value"] == pytest.approx(1.0, abs=1e-9)
        assert row["p"] == pytest.approx(1 / 200)
    rng = np.random.default_rng(0)
    dealt = ElementMap(
        first.symbols, first.numbers, (), first.vectors[rng.permutation(len(MAIN))], first.components, first.explained
    )
    for row in compare(first, dealt, permutations=199):
        assert abs(row["value"]) < 0.5
        assert row["p"] > 0.01


def test_models_of_deepmd_kit():
    found = element_map(load_potential("tests/golden/models/six_elements_strip/model.dp"))
    assert found.symbols == ("H", "C", "N", "O", "Al", "Cu")
    assert found.explained.sum() == pytest.approx(1.0)
