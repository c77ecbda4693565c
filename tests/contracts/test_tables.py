"""A tabulated potential is the potential, to the promised error: on any option set, everywhere, with all derivatives."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.errors import RunError, UserError
from dpa1.frames import make_frame
from dpa1.interop.load import load_potential
from dpa1.model import memory, table, table_build, table_solve
from dpa1.model.file import load_model, save_model
from dpa1.model.potential import Potential
from dpa1.model.table import R_MIN
from tests.contracts.systems import (
    CUTOFF,
    ELEMENTS,
    example_options,
    option_sets,
    predict,
    random_frame,
    random_potential,
)
from tests.golden.common import frame_of

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "models").iterdir())
BOUND = 1e-6  # eV/Å, the default


def pair_frame(distance: float, numbers=(8, 1)):
    return make_frame(numbers, [[0.0, 0.0, 0.0], [0.0, 0.0, distance]])


def energy_of(potential: Potential, batch) -> torch.Tensor:
    """Differentiable in the batch's positions."""
    return potential.predict(batch, virial=False, create_graph=True)["energy"].sum()


def curve(potential: Potential, distances: list[float], order: int) -> list[np.ndarray]:
    """Energy of an O–H–H chain and its derivatives up to ``order`` along one O–H distance."""
    out: list[list[float]] = []
    for distance in distances:
        frame = make_frame([8, 1, 1], [[0, 0, 0], [0, 0, distance], [0.3, 1.2, -0.4]])
        batch = make_batch([frame], CUTOFF)
        move = torch.zeros((), dtype=torch.float64, requires_grad=True)
        along = torch.zeros(3, 3, dtype=torch.float64)
        along[1, 2] = 1.0
        value = energy_of(potential, replace(batch, positions=batch.positions + move * along))
        values = [value]
        for k in range(order):
            (value,) = torch.autograd.grad(value, move, create_graph=k + 1 < order)
            values.append(value)
        out.append([float(v.detach()) for v in values])
    return [np.array(column) for column in zip(*out, strict=True)]


@settings(max_examples=25, deadline=None)
@given(option_sets(), st.integers(0, 10_000))
def test_error_of_unseen_structures_is_below_the_bound(options, seed):
    potential = random_potential(options, seed)
    tabulated = potential.tabulated()
    frame = random_frame(seed, atoms=9)
    exact = predict(potential, frame)
    refusal = ""
    try:
        found = predict(tabulated, frame)
    except RunError as error:
        refusal = str(error)
    if refusal:
        # The second derivative of this activation jumps, so the bound can be out of reach.
        assert options["activation"] == "silut:3.0"
        assert "not smooth enough" in refusal
        return
    assert np.abs(found["forces"] - exact["forces"]).max() < BOUND
    assert np.abs(found["energy"] - exact["energy"]).max() < BOUND * len(frame)
    assert np.abs(found["virial"] - exact["virial"]).max() < BOUND * len(frame) * CUTOFF
    reports = tabulated.tables.reports
    assert len(reports) == 1
    assert reports[0].force_error < BOUND
    assert int(tabulated.tables.finished.solved.sum()) == reports[0].pairs == len(reports[0].elements) ** 2


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_error_on_deepmd_models(folder):
    potential = load_potential(folder / "model.dp")
    tabulated = potential.tabulated()
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as data:
            frame = frame_of(data, potential.elements)
        exact, found = predict(potential, frame), predict(tabulated, frame)
        assert np.abs(found["forces"] - exact["forces"]).max() < BOUND
        assert not np.array_equal(found["forces"], exact["forces"])  # the tables were used
    projected = potential.config.attention_layers and not potential.descriptor.types_fade
    assert len(tabulated.tables.finished.values) == (4 if projected else 1)
    assert tabulated.tables.reports[0].force_error < BOUND


def test_a_tighter_bound_is_met_by_denser_knots():
    potential = random_potential(example_options(), 1)
    frame, spacings = random_frame(3, atoms=9), []
    exact = predict(potential, frame)["forces"]
    for bound in (1e-3, 1e-6, 1e-10):
        tabulated = potential.tabulated(bound, ELEMENTS)
        spacings.append(tabulated.tables.reports[0].spacing)
        assert np.abs(predict(tabulated, frame)["forces"] - exact).max() < bound
    assert spacings[0] >= spacings[1] > spacings[2]


def distance_of(radial: float, start: float) -> float:
    """r with sw(r)/r = radial, by bisection."""
    low, high = 1e-3, CUTOFF
    for _ in range(80):
        middle = 0.5 * (low + high)
        u = min(max((middle - start) / (CUTOFF - start), 0.0), 1.0)
        above = (1.0 + u**3 * (u * (15.0 - 6.0 * u) - 10.0)) / middle > radial
        low, high = (middle, high) if above else (low, middle)
    return low


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("type_input", ["concat", "strip"])
def test_second_derivatives_are_continuous(layers, type_input):
    """Left and right of knots, of the switch's start, of the cutoff and of where the networks take over."""
    start = 1.5
    potential = random_potential(example_options(attention_layers=layers, type_input=type_input, switch_start=start), 2)
    tabulated = potential.tabulated(elements=("H", "O"))
    grid, centre = tabulated.tables.finished.grid, ELEMENTS.index("O")
    pair, scale = centre * len(ELEMENTS) + ELEMENTS.index("H"), float(potential.descriptor.scale[centre, 0])
    ends = torch.arange(1, int(grid.cells[pair]) + 1)
    knots = [distance_of(s, start) for s in ((ends - grid.origin[pair]) / grid.inverse[pair] * scale).tolist() if s > 0]
    takeover = knots[-1]
    assert 0.3 * R_MIN < takeover < R_MIN
    step, far = 1e-7, 1e-3
    for place in [*knots[::3], takeover, start, CUTOFF]:
        energy, slope, curvature = curve(tabulated, [place - step, place + step], 2)
        nearby = curve(potential, [place - far, place + far], 2)[2]
        third = abs(nearby[1] - nearby[0]) / far
        # Beside rounding, the networks' own change over two steps; where they take over, the error of the tables.
        error = 1e-6 if place == takeover else 0.0
        assert abs(energy[1] - energy[0] - 2 * step * slope[0]) < 1e-12 + error
        assert abs(slope[1] - slope[0] - 2 * step * curvature[0]) < 1e-10 + 1e-12 * third + error
        assert abs(curvature[1] - curvature[0]) < 1e-8 + 4 * step * third + 100 * error


def test_knots_show_in_no_low_derivative():
    """The fourth derivative is continuous inside the table too; the fifth is not, so the test sees the knots."""
    potential = random_potential(example_options(attention_layers=0), 4)
    tabulated = potential.tabulated(1e-3, ("H", "O"))
    tables = tabulated.tables.finished
    scale = float(potential.descriptor.scale[1, 0])
    pair = 1 * len(ELEMENTS) + 0
    s = torch.linspace(0.2, 1.5, 3, dtype=torch.float64) / scale
    cells = torch.floor(s * tables.grid.inverse[pair] + tables.grid.origin[pair])
    knots = (cells - tables.grid.origin[pair]) / tables.grid.inverse[pair]
    for knot in knots.tolist():
        values = []
        for side in (-1e-9, 1e-9):
            x = torch.tensor([[knot + side]], dtype=torch.float64, requires_grad=True)
            value = tables.lookup(x, torch.tensor([[pair]]), None)[0][..., 0].sum()
            row = []
            for _ in range(5):
                (value,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
                value = value.sum()
                row.append(float(value.detach()))
            values.append(row)
        jumps = np.abs(np.subtract(*values)) / float(tables.grid.inverse[pair]) ** np.arange(1, 6)
        assert jumps[:4].max() < 1e-8
        assert jumps[4] > 1e-8


def test_pairs_closer_than_the_range_are_exact():
    potential = random_potential(example_options(attention_layers=1), 5)
    tabulated = potential.tabulated(1e-3, ("H", "O"))
    for distance in (0.05, 0.2, 0.5 * R_MIN):
        exact, found = (predict(p, pair_frame(distance)) for p in (potential, tabulated))
        np.testing.assert_allclose(found["forces"], exact["forces"], rtol=1e-12, atol=1e-12)
    exact, found = (predict(p, pair_frame(1.2 * R_MIN)) for p in (potential, tabulated))
    assert np.abs(found["energy"] - exact["energy"]).max() > 0


@pytest.mark.parametrize(
    "options",
    [
        example_options(attention_layers=0),
        example_options(attention_layers=2),
        example_options(convention="deepmd", sel=40, mean_neighbors=None, attention_layers=2),
        example_options(attention_layers=2, type_input="strip"),
    ],
    ids=["no attention", "attention", "deepmd", "strip"],
)
def test_hessian_is_that_of_the_networks(options):
    if options["mean_neighbors"] is None:
        del options["mean_neighbors"]
    potential = random_potential(options, 6)
    frame = random_frame(7, atoms=4)

    def hessian(model: Potential) -> torch.Tensor:
        batch = make_batch([frame], CUTOFF)

        def energy(moved: torch.Tensor) -> torch.Tensor:
            return energy_of(model, replace(batch, positions=moved))

        return torch.autograd.functional.hessian(energy, batch.positions)

    exact = hessian(potential)
    assert float((hessian(potential.tabulated()) - exact).abs().max()) < 1e-4 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("layers", [0, 2])
def test_forces_are_the_slope_of_its_own_energy(layers):
    tabulated = random_potential(example_options(attention_layers=layers), 8).tabulated(1e-3)
    frame = random_frame(9)
    forces, step = predict(tabulated, frame)["forces"], 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for k in (-2, -1, 1, 2):
            positions = frame.positions.copy()
            positions[atom, axis] += k * step
            moved = make_frame(frame.numbers, positions, frame.cell, frame.pbc)
            energies.append(predict(tabulated, moved)["energy"][0])
        slope = (8 * (energies[2] - energies[1]) - (energies[3] - energies[0])) / (12 * step)
        assert forces[atom, axis] == pytest.approx(-slope, abs=1e-7)


def test_atoms_without_neighbors():
    """An empty slot names a pair of elements that has no table."""
    potential = random_potential(example_options(), 27)
    tabulated = potential.tabulated()
    frame = pair_frame(20.0, (29, 29))
    np.testing.assert_allclose(predict(tabulated, frame)["energy"], predict(potential, frame)["energy"], rtol=1e-14)


def known_elements(tabulated: Potential) -> set[str]:
    solved = tabulated.tables.finished.solved
    return {symbol for symbol, own in zip(tabulated.elements, solved.any(1), strict=True) if own}


def test_tables_grow_with_the_elements_at_hand():
    elements = ("H", "C", "N", "O", "Na", "Si", "S", "Fe", "Cu", "Au")
    potential = random_potential(example_options(elements=elements), 10)
    tabulated = potential.tabulated()
    for numbers, known, pairs in (
        ((1, 8), {"H", "O"}, 4),
        ((8, 8), {"H", "O"}, 4),
        ((29, 8, 79), {"H", "O", "Cu", "Au"}, 12),
    ):
        frame = make_frame(numbers, np.arange(3 * len(numbers)).reshape(-1, 3) * 0.5)
        exact, found = predict(potential, frame), predict(tabulated, frame)
        assert np.abs(found["forces"] - exact["forces"]).max() < BOUND
        assert known_elements(tabulated) == known
        assert tabulated.tables.reports[-1].pairs == pairs
    assert len(tabulated.tables.reports) == 2


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_new_elements_are_added_to_the_tables_there_are(monkeypatch, precision):
    elements = ("H", "C", "N", "O", "Cu")
    potential = random_potential(example_options(elements=elements), 26).set_precision(precision)
    tabulated = potential.tabulated(elements=("H", "O"))
    measured, before = [], tabulated.tables.finished

    def measure(exact, block, values, steepness):
        found = dict(table_solve.measure(exact, block, values, steepness))
        measured.extend(found)
        return iter(found.items())

    monkeypatch.setattr(table_build, "measure", measure)
    tabulated.build_tables(("H", "O", "Cu"))
    after = tabulated.tables.finished
    old = {0, 3, 15, 18}  # O and H are 3 and 0 of five
    assert {4, 19, 20, 23, 24} <= set(measured)
    for pair in old:
        cells = int(before.grid.cells[pair])
        assert int(after.grid.cells[pair]) == cells
        for a, b in zip(before.values, after.values, strict=True):
            first, second = int(before.grid.row[pair]), int(after.grid.row[pair])
            assert torch.equal(a[first : first + cells + 5], b[second : second + cells + 5])
    at_once = potential.tabulated(elements=("H", "O", "Cu"))
    frame = random_frame(26, atoms=9)
    forces = [predict(p, frame)["forces"] for p in (tabulated, at_once, potential)]
    tolerance = BOUND if precision == "float64" else 1e-4 * max(1.0, np.abs(forces[2]).max())
    assert max(np.abs(f - forces[2]).max() for f in forces[:2]) < tolerance


def test_threads_share_growing_tables():
    """Each thread meets elements in an order of its own; all build each set once and get the forces of one thread."""
    elements = ("H", "C", "N", "O", "Na", "Cu")
    potential = random_potential(example_options(elements=elements, attention_layers=0), 24)
    frames = [random_frame(24, atoms=9)]
    frames += [make_frame((8, z), [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]) for z in (1, 6, 7, 11)]
    alone = potential.tabulated(elements=elements)
    expected = [predict(alone, frame)["forces"] for frame in frames]
    tabulated, start = potential.tabulated(), threading.Barrier(4)

    def work(first: int) -> float:
        start.wait()
        order = [*range(first, len(frames)), *range(first)] * 2
        return max(float(np.abs(predict(tabulated, frames[k])["forces"] - expected[k]).max()) for k in order)

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(work, range(4)))
    assert max(errors) < BOUND
    pairs = [report.pairs for report in tabulated.tables.reports]
    assert pairs == sorted(set(pairs))


def test_tables_in_use_stay_as_they_are():
    potential = random_potential(example_options(), 25)
    tabulated = potential.tabulated(elements=("H",))
    held = tabulated.tables.finished
    values = [value.clone() for value in held.values]
    tabulated.build_tables(ELEMENTS)
    assert tabulated.tables.finished is not held
    assert all(torch.equal(*both) for both in zip(held.values, values, strict=True))
    tabulated.tables.clear()
    assert held.serves(torch.tensor([0]), torch.float64)
    with pytest.raises(FrozenInstanceError):
        held.values = ()


def test_tables_that_grow_too_large_are_given_up(monkeypatch):
    potential = random_potential(example_options(), 11)
    tabulated = potential.tabulated(elements=("H", "O"))
    monkeypatch.setattr(table, "MAX_BYTES", 3 * sum(v.nbytes for v in tabulated.tables.finished.values) // 2)
    for numbers in ((1, 8), (29, 29), (29, 1), (1, 8)):
        frame = pair_frame(1.4, numbers)
        exact, found = predict(potential, frame), predict(tabulated, frame)
        assert np.abs(found["forces"] - exact["forces"]).max() < BOUND
        assert sum(v.nbytes for v in tabulated.tables.finished.values) <= table.MAX_BYTES
    assert known_elements(tabulated) >= {"H", "O"}


def test_tables_too_large_for_the_elements_at_hand_are_refused(monkeypatch):
    potential = random_potential(example_options(), 11)
    monkeypatch.setattr(table, "MAX_BYTES", 1000)
    with pytest.raises(RunError, match=r"^tables for 2 elements would take .* GB, more than .*: use the model without"):
        predict(potential.tabulated(), pair_frame(1.4))
    monkeypatch.undo()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(
        RunError, match=r"^tables for 3 elements do not fit into memory, of which 0 MB are free: use the"
    ):
        potential.tabulated(elements=ELEMENTS)


def test_eight_elements_of_the_shipped_model_take_little(monkeypatch):
    """Knots are as dense as each pair needs, and building runs the networks at a bounded number of places at once."""
    potential = load_potential("pbe")
    places = []

    def columns(descriptor, radial, *rest):
        places.append(radial.numel())
        return table.columns(descriptor, radial, *rest)

    monkeypatch.setattr(table_solve, "columns", columns)
    report = potential.tabulated(elements=potential.elements[:8]).tables.reports[0]
    assert report.rows / report.pairs < 600
    assert 1e-9 < report.force_error <= BOUND / 4
    assert max(places) < 4 * table_solve.NODES


def test_it_is_saved_as_the_exact_model(tmp_path):
    potential = random_potential(example_options(), 12)
    tabulated = potential.tabulated(elements=ELEMENTS)
    save_model(potential, tmp_path / "exact.dpa1")
    save_model(tabulated, tmp_path / "tabulated.dpa1")
    assert (tmp_path / "exact.dpa1").read_bytes() == (tmp_path / "tabulated.dpa1").read_bytes()
    assert load_model(tmp_path / "tabulated.dpa1").tables is None
    assert tabulated.elements == potential.elements
    assert tabulated.cutoff == potential.cutoff
    assert tabulated.config == potential.config


def test_tables_built_in_inference_mode_serve_forces_later():
    potential, frame = random_potential(example_options(), 22), random_frame(22)
    tabulated = potential.tabulated()
    with torch.inference_mode():
        tabulated.predict(make_batch([frame], CUTOFF), forces=False, virial=False)
    assert np.abs(predict(tabulated, frame)["forces"] - predict(potential, frame)["forces"]).max() < BOUND
    assert len(tabulated.tables.reports) == 1


def test_training_is_refused():
    tabulated = random_potential(example_options(), 13).tabulated()
    for forbidden in (tabulated.train, tabulated.requires_grad_):
        with pytest.raises(UserError, match="cannot be trained"):
            forbidden()
    assert not any(parameter.requires_grad for parameter in tabulated.parameters())


def test_other_weights_make_other_tables():
    first, second = (random_potential(example_options(), seed) for seed in (14, 15))
    tabulated = first.tabulated(elements=ELEMENTS)
    tabulated.load_state_dict(second.state_dict())
    frame = random_frame(16)
    assert np.abs(predict(tabulated, frame)["forces"] - predict(second, frame)["forces"]).max() < BOUND


def test_float32_says_what_rounding_adds():
    potential = random_potential(example_options(), 17).set_precision("float32")
    tabulated = potential.tabulated(elements=ELEMENTS)
    report = tabulated.tables.reports[0]
    assert report.force_error < BOUND
    assert report.rounding < 10 * report.exact_rounding + BOUND
    assert "in float32 on cpu" in str(report)
    frame = random_frame(18)
    exact, found = (predict(p, frame)["forces"] for p in (potential, tabulated))
    assert np.abs(exact - found).max() < 1e-4 * max(1.0, np.abs(exact).max())


def test_what_cannot_be_tabulated_says_so():
    potential = random_potential(example_options(activation="relu", attention_layers=0), 19)
    with pytest.raises(RunError, match="not smooth enough"):
        potential.tabulated(1e-9, ELEMENTS)


def test_bad_arguments():
    potential = random_potential(example_options(), 20)
    for bound in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="max_force_error"):
            potential.tabulated(bound)
    with pytest.raises(UserError, match="it knows H, O, Cu"):
        potential.tabulated(elements=("Xe",))
    with pytest.raises(UserError, match="it knows H, O, Cu"):
        potential.tabulated(elements=("water",))


def test_wide_statistics_only_cost_rows():
    """Elements whose inputs differ tenfold share one set of tables."""
    config = ModelConfig(**example_options(attention_layers=0))
    potential = Potential(config)
    potential.descriptor.scale[:, 0] = torch.tensor([0.03, 0.1, 0.4])
    tabulated = potential.tabulated(elements=ELEMENTS)
    frame = random_frame(21, atoms=9)
    assert np.abs(predict(tabulated, frame)["forces"] - predict(potential, frame)["forces"]).max() < BOUND
    cells = tabulated.tables.finished.grid.cells
    assert float(cells.max()) > 5 * float(cells.min())


def test_calculator_and_evaluation_use_tables():
    from dpa1.analysis.evaluate import evaluate
    from dpa1.frames import to_ase

    potential, frame = random_potential(example_options(), 23), random_frame(23)
    atoms = to_ase(frame)
    exact = potential.calculator().get_forces(atoms)
    calculator = potential.calculator(tabulate=True)
    found = calculator.get_forces(atoms)
    assert 0 < np.abs(found - exact).max() < BOUND
    assert calculator.potential.tables.reports[0].force_error < BOUND
    single = potential.calculator(tabulate=True, dtype="float32")
    assert np.abs(single.get_forces(atoms) - exact).max() < 1e-4 * max(1.0, np.abs(exact).max())
    atoms.calc = potential.calculator()
    atoms.get_forces()
    tabulated = potential.tabulated()
    assert evaluate(tabulated, [atoms])["force_rmse"] < BOUND
    assert len(tabulated.tables.reports) == 1
