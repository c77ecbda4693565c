"""In a training step the embedding net is evaluated at nodes only where that is as exact, and only there."""

import numpy as np
import pytest
import torch

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.config.training import LossConfig
from dpa1.frames import make_frame
from dpa1.kernels import compiled_density, contracted_embedding, density, embedding, interpolated, nodes
from dpa1.kernels.embedding_net import Parts, evaluate, parts
from dpa1.kernels.reference import DenseLayer
from dpa1.kernels.table import spline_sums
from dpa1.kernels.wanted import geometry_only, training_step
from dpa1.model.blockwise import Blockwise
from dpa1.model.potential import Potential
from dpa1.training.loss import Loss

PRECISION = {"float64": (torch.float64, 1e-9), "float32": (torch.float32, 2e-4)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def liquid(elements=("O", "H"), edge=6, seed=0):
    """Atoms on a shaken cubic lattice, with labels."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.0
    numbers = np.resize([{"O": 8, "H": 1, "Si": 14}[e] for e in elements], len(sites))
    cell = np.eye(3) * edge * 2.0
    forces = rng.normal(size=sites.shape)
    return make_frame(numbers, sites + rng.uniform(-0.4, 0.4, sites.shape), cell, True, energy=1.0, forces=forces)


def potential(layers, precision, seed=3, **options):
    torch.manual_seed(seed)
    model = Potential(
        ModelConfig(
            elements=("O", "H"), cutoff=5.0, embedding=(12, 24, 48), axis=6, attention_layers=layers, attention_width=16,
            fitting=(24, 24), type_embedding=4,
            **({"mean_neighbors": 60.0} if "sel" not in options else {}), **options,
        )
    )  # fmt: skip
    model.set_precision(precision)
    model.descriptor.mean.fill_(0.1)
    model.descriptor.scale.fill_(0.15)
    return model


def gradients(model, frame, monkeypatch, saving):
    """Of a loss, block by block, with nodes for ``saving`` pairs each."""
    monkeypatch.setattr(nodes.make_grid, "__defaults__", (saving,))
    batch = make_batch([frame], 5.0)
    model.zero_grad()
    work = Blockwise(model, batch)
    loss = Loss(LossConfig())
    leaves = {name: work.prediction[name].requires_grad_() for name in ("energy", "forces")}
    loss(batch, dict(leaves), 1.0).sum().backward()
    work.backward(leaves["energy"].grad, leaves["forces"].grad, None)
    return work.prediction, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"convention": "deepmd", "sel": 90}])
def test_gradients_of_a_step(layers, precision, options, monkeypatch):
    used = []
    for module, name in ((density, "contracted"), (interpolated, "features")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *x, plain=plain, name=name: used.append(name) or plain(*x))
    monkeypatch.setattr("dpa1.model.blockwise.CHUNK_SLOTS", 10**5)
    monkeypatch.setattr(nodes, "MOST", 2000)
    model, frame = potential(layers, precision, **options), liquid()
    found, with_nodes = gradients(model, frame, monkeypatch, 1)
    assert used
    assert "contracted" in used or layers or precision == "float64"
    expected, without = gradients(model, frame, monkeypatch, 10**9)
    tolerance = PRECISION[precision][1]
    for key in ("energy", "forces"):
        torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance)
    largest = max(float(x.abs().max()) for x in without)
    for a, b in zip(with_nodes, without, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-3 * largest)


@pytest.mark.parametrize("layers", [0, 1])
def test_gradients_with_a_frozen_embedding_net(layers, monkeypatch):
    model, frame = potential(layers, "float64"), liquid()
    model.descriptor.embedding.requires_grad_(False)
    model.descriptor.type_embedding.requires_grad_(False)
    monkeypatch.setattr(nodes, "MOST", 2000)
    _, with_nodes = gradients(model, frame, monkeypatch, 1)
    _, without = gradients(model, frame, monkeypatch, 10**9)
    assert len(with_nodes) == len(without) > 0
    for a, b in zip(with_nodes, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def errors(found, exact):
    """Of forces and of the whole gradient, relative to the largest force and to the gradient's length."""
    forces = (found[0]["forces"] - exact[0]["forces"]).detach().abs().max() / exact[0]["forces"].detach().abs().max()
    lengths = [
        torch.stack([x.double().norm() for x in of]).norm()
        for of in ([a - b for a, b in zip(found[1], exact[1], strict=True)], exact[1])
    ]
    return float(forces), float(lengths[0] / lengths[1])


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("steepness", [1.0, 2.0])
def test_nodes_lose_no_digits_in_single_precision(steepness, layers, monkeypatch):
    """With hundreds of nodes, as two atoms very close take, forces and gradients are as exact as without, on average."""
    counts = []

    def counted(*arguments, make_grid=nodes.make_grid):
        found = make_grid(*arguments)
        counts.append(0 if found is None else found.count)
        return found

    monkeypatch.setattr("dpa1.kernels.embedding.make_grid", counted)
    monkeypatch.setattr("dpa1.model.blockwise.CHUNK_SLOTS", 10**5)
    with_nodes, without = [], []
    for seed in range(4):
        model, frame = potential(layers, "float32", seed), liquid(("O",), seed=seed)
        frame.positions[1] = frame.positions[0] + 0.2
        first = model.descriptor.embedding.layers[0]
        first.weight.data[0] *= steepness
        first.bias.data *= steepness
        found = gradients(model, frame, monkeypatch, 1)
        assert max(counts) > 200
        usual = gradients(model, frame, monkeypatch, 10**9)
        exact = gradients(model.set_precision("float64"), frame, monkeypatch, 10**9)
        with_nodes.append(errors(found, exact))
        without.append(errors(usual, exact))
    for found, usual in zip(np.mean(with_nodes, 0), np.mean(without, 0), strict=True):
        assert found < 2 * usual + 2e-7


def test_step_of_training_uses_them_and_nothing_else(monkeypatch):
    calls = []
    plain = nodes.Grid.place
    monkeypatch.setattr(nodes.Grid, "place", lambda grid, net: calls.append(grid) or plain(grid, net))
    monkeypatch.setattr("dpa1.model.blockwise.CHUNK_SLOTS", 500)
    model, batch = potential(0, "float32"), make_batch([liquid()], 5.0)
    model.predict(batch)
    model.predict(batch, create_graph=True)
    assert not calls
    work = Blockwise(model, batch)
    assert len(calls) == len(work.kept) > 1
    assert all(grid is calls[0] for grid in calls)


def net(sharpness, pairs=3000, kinds=2, dtype=torch.float64):
    rng = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return torch.randn(*shape, dtype=dtype, generator=rng)

    layers = [DenseLayer(sharpness * drawn(4, 6), drawn(6), None, 0), DenseLayer(drawn(6, 12), drawn(12), None, 2)]
    radial = torch.rand(pairs // 50, 50, dtype=dtype, generator=rng).requires_grad_()
    pair = torch.randint(0, kinds, radial.shape, generator=rng)
    return radial, pair, drawn(kinds, 3), layers


def grid(*arguments):
    """Splines for all pairs of a net, as a training step makes them."""
    return nodes.own_grid(parts(*arguments))


def test_as_dense_as_it_takes():
    counts = [nodes.place_nodes(parts(*net(sharpness, 100_000))).count for sharpness in (0.3, 3.0, 10.0)]
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize(
    "case", [{"sharpness": 1e4}, {"sharpness": 1.0, "pairs": 400}, {"sharpness": 1.0, "kinds": 40}]
)
def test_the_net_itself_where_nodes_would_not_do(case):
    """Steps too sharp for a spline, or too few pairs of each kind."""
    radial, pair, table, layers = net(**case)
    assert grid(radial, pair, table, layers) is None
    with training_step(None):
        found = embedding.run(radial, pair, table, layers, torch.tanh)
    torch.testing.assert_close(found, embedding.run(radial, pair, table, layers, torch.tanh), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("place", np.linspace(0.02, 0.98, 13))
def test_one_sharp_step_anywhere_is_seen(place, dtype):
    """All units but one are smooth; that one is a step between two nodes."""
    radial, pair, table, layers = net(0.3, 100_000, dtype=dtype)
    layers[0].weight[:, 0] = 0.0
    layers[0].weight[0, 0], layers[0].bias[0] = 3e4, -3e4 * place
    assert nodes.place_nodes(parts(radial, pair, table, layers)) is None


@pytest.mark.parametrize(("dtype", "steepness"), [(torch.float32, 10.0), (torch.float32, 20.0), (torch.float64, 5.0)])
@pytest.mark.parametrize("seed", range(6))
def test_as_exact_as_promised_near_a_steep_but_weak_unit(seed, steepness, dtype):
    """Of 25 units one is a steep step of small weight at a random place: G' is that of the net everywhere."""
    rng = torch.Generator().manual_seed(seed)
    width = 25
    slopes, steps = torch.randn(width, generator=rng), 3.0 * torch.rand(width, generator=rng)
    slopes[0] = steepness
    weights = torch.randn(width, 50, generator=rng) / (3 * width) ** 0.5
    weights[0] *= 10.0 ** (-4 + 3 * torch.rand(1, generator=rng))
    s = 3.0 * torch.rand(30_000, generator=rng)
    s, types, *rest = (x.to(dtype) for x in (s, -(slopes * steps).unsqueeze(0), slopes, weights, torch.zeros(50)))
    found = nodes.place_nodes(Parts(s, None, types, (0,), tuple(rest)))
    assert found is not None
    place = found.place.double()
    (near,) = spline_sums(found.row, found.slopes(), nodes.slope_weights(place))
    exact = evaluate((0,), True, s.double(), types.double().expand(len(s), -1), [x.double() for x in rest])[-1][1]
    assert float((near - exact).abs().max() / exact.abs().max()) < 1.5 * nodes.TOLERANCE[dtype]


def test_pairs_of_one_distance():
    radial, pair, table, layers = net(1.0)
    same = torch.full_like(radial, 0.25).requires_grad_()
    with training_step(grid(same, pair, table, layers)):
        found = embedding.run(same, pair, table, layers, torch.tanh)
    torch.testing.assert_close(found, embedding.run(same, pair, table, layers, torch.tanh), rtol=1e-10, atol=1e-10)


def test_numbers_that_are_none_fall_through():
    radial, pair, table, layers = net(float("nan"))
    assert nodes.place_nodes(parts(radial, pair, table, layers)) is None


def test_derivatives_that_no_step_asks_for_are_refused():
    radial, pair, table, layers = net(1.0, 20_000)
    with training_step(grid(radial, pair, table, layers)):
        found = embedding.run(radial, pair, table, layers, torch.tanh)
    with pytest.raises(NotImplementedError, match="training step"):
        torch.autograd.grad(found.sin().sum(), radial, create_graph=True)
    with geometry_only():
        (first,) = torch.autograd.grad(found.sin().sum(), radial, create_graph=True)
    with pytest.raises(NotImplementedError, match="training step"):
        first.sum().backward()


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("options", [{}, {"one_sided": True}])
def test_compiled_sums_over_nodes_are_those_of_torch(precision, options, monkeypatch):
    """In whole steps, over several kinds of pairs, with empty slots."""
    monkeypatch.setattr(nodes, "MOST", 2000)
    model, frame = potential(0, precision, **options), liquid()
    ways, used = contracted_embedding.DENSITIES, []
    contracted = density.contracted
    monkeypatch.setattr(density, "contracted", lambda passes, *x: used.append(passes) or contracted(passes, *x))
    found = gradients(model, frame, monkeypatch, 1)
    monkeypatch.setattr(contracted_embedding, "DENSITIES", ways[1:])
    expected = gradients(model, frame, monkeypatch, 1)
    if precision == "float32":
        assert set(used) == {compiled_density.COMPILED, density.TORCH}
    tolerance = PRECISION[precision][1]
    for key in ("energy", "forces"):
        torch.testing.assert_close(found[0][key], expected[0][key], rtol=tolerance, atol=tolerance)
    largest = max(float(x.abs().max()) for x in expected[1])
    for a, b in zip(found[1], expected[1], strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-3 * largest)
