"""Run by ``test_triton.py``: shapes that fill no tile, empty rows, masked slots, every convention of attention."""

import importlib

import pytest
import torch

from dpa1.kernels import proof, reference
from dpa1.kernels.reference import DenseLayer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ("environment", "embedding", "attention", "contraction", "spline")


def kernel(name):
    return importlib.import_module(f"dpa1.kernels.gpu.{name}")


def compare(name, operation, sample, tolerance=1e-10):
    module = kernel(name)
    inputs = [x.to(DEVICE) for x in sample.inputs]
    assert sample.call(module.supports, inputs)
    fast = proof.derivatives(module.run, sample, inputs)
    exact = proof.derivatives(getattr(reference, operation), sample, inputs)
    for a, b in zip(fast, exact, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", KERNELS)
def test_holds_the_proof_of_first_use(name, dtype):
    operation = "gated_attention" if name == "attention" else name
    module = kernel(name)
    assert proof.error(operation, module.run, module.supports, dtype, DEVICE) <= proof.TOLERANCE[dtype]


@pytest.mark.parametrize(("atoms", "slots"), [(1, 1), (3, 45), (2, 64)])
def test_environment(atoms, slots):
    vectors, mask = 3.0 * draw(1, atoms, slots, 3), draw(2, atoms, slots) > -0.5
    mask[0] = False

    def call(run, x):
        return run(x[0], mask.to(DEVICE), torch.float64, 0.7, 6.1, 0.013)

    compare("environment", "environment", proof.Sample([vectors], 1, call))


@pytest.mark.parametrize("widths", [(3, 6, 6), (5, 10, 40), (25, 50, 100), (8, 7, 9)])
def test_embedding(widths):
    sizes = list(zip((5, *widths), widths, strict=False))
    weights = [x for k, (a, b) in enumerate(sizes) for x in (draw(10 + k, a, b) / a**0.5, draw(20 + k, b))]
    pair = torch.arange(39).remainder(3).view(3, 13)

    def call(run, x):
        layers = [
            DenseLayer(x[2 + 2 * k], x[3 + 2 * k], None, b // a if k and b in (a, 2 * a) else 0)
            for k, (a, b) in enumerate(sizes)
        ]
        return run(x[0], pair.to(DEVICE), x[1], layers, torch.tanh)

    compare("embedding", "embedding", proof.Sample([draw(3, 3, 13), draw(4, 3, 4), *weights], 1, call))


@pytest.mark.parametrize(
    ("kind", "bounded", "slots", "width"),
    [
        *((kind, bounded, 19, 40) for kind in ("smooth", "scaled", "plain") for bounded in (True, False)),
        ("smooth", True, 1, 3),
        ("scaled", False, 33, 100),
    ],
)
def test_attention(kind, bounded, slots, width):
    weight = draw(5, 2, slots).sigmoid()
    weight[0, slots // 2 :] = 0.0
    direction = torch.nn.functional.normalize(draw(6, 2, slots, 3), dim=-1)
    scale = width**-0.5 if bounded else 4.0 * width**-0.5
    inputs = [weight, direction, *(scale * draw(7 + k, 2, slots, width) for k in range(3))]

    def call(run, x):
        return run(*x[2:], proof.make_keys(kind, x[0], x[1]), bounded)

    compare("attention", "gated_attention", proof.Sample(inputs, 5, call))


def test_attention_of_huge_scores_stays_finite():
    keys = proof.make_keys("smooth", torch.ones(1, 20, dtype=torch.float64).to(DEVICE), None)
    query, key, value = (60.0 * draw(k, 1, 20, 16).to(DEVICE) for k in range(3))
    fast = kernel("attention").run(query, key, value, keys, False)
    torch.testing.assert_close(fast, reference.gated_attention(query, key, value, keys, False))
    assert torch.isfinite(fast).all()


@pytest.mark.parametrize(("slots", "channels"), [(1, 3), (37, 40), (20, 100)])
def test_contraction(slots, channels):
    sample = proof.Sample([draw(1, 2, slots, channels), draw(2, 2, slots, 4)], 2, lambda run, x: run(*x))
    compare("contraction", "contraction", sample)


@pytest.mark.parametrize("widths", [(1,), (130, 7)])
def test_spline(widths):
    row = torch.arange(2 * 37).remainder(11).view(2, 37)
    tables = [draw(20 + k, 16, width) for k, width in enumerate(widths)]

    def call(run, x):
        return run(x[0], row.to(DEVICE), tuple(table.to(x[0]) for table in tables))

    compare("spline", "spline", proof.Sample([draw(4, 2, 37).sigmoid()], 1, call))


def test_no_atoms():
    none = torch.zeros(0, dtype=torch.float64, device=DEVICE)
    (values,) = kernel("spline").run(none, none.long(), [torch.ones(9, 4, dtype=torch.float64, device=DEVICE)])
    assert values.shape == (0, 4)
    empty = torch.zeros(0, 3, 4, dtype=torch.float64, device=DEVICE)
    assert kernel("contraction").run(empty, empty).shape == (0, 4, 4)
    keys = proof.make_keys("smooth", empty[:, :, 0], empty[:, :, :3])
    assert kernel("attention").run(empty, empty, empty, keys, True).shape == (0, 3, 4)


def test_whole_model_on_the_kernels(monkeypatch):
    """Energy and forces of a small model, as if the kernels were those of this device."""
    from ase.build import bulk

    from dpa1.config.model import ModelConfig
    from dpa1.kernels import dispatch
    from dpa1.model.potential import Potential

    torch.manual_seed(0)
    config = ModelConfig(
        size="small", elements=("Na", "Cl"), cutoff=4.0, mean_neighbors=20.0, precision="float64", attention_layers=1
    )
    potential = Potential(config)
    potential.descriptor.scale.fill_(0.03)
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.1, seed=0)
    monkeypatch.setattr(dispatch, "PATHS", ())
    plain = potential.calculator(device=DEVICE, fixed_shapes=False).get_forces(atoms)
    tabulated = potential.to(DEVICE).tabulated(1e-3, ("Na", "Cl"))
    looked_up = tabulated.calculator(fixed_shapes=False).get_forces(atoms)
    used = []

    def pick(operation, *arguments):
        name = "attention" if operation == "gated_attention" else operation
        if name in KERNELS and kernel(name).supports(*arguments[2:]):
            used.append(name)
            return kernel(name).run(*arguments[2:])
        if operation == "attention_layer":
            return dispatch._layer_of_parts(*arguments[2:])
        if operation == "projected_layer":
            return reference.projected_layer(*arguments[2:], dispatch.gated_attention)
        return getattr(reference, operation)(*arguments[2:])

    monkeypatch.setattr(dispatch, "_pick", pick)
    fast = potential.calculator(fixed_shapes=False).get_forces(atoms)
    assert set(used) == set(KERNELS) - {"spline"}
    assert abs(fast - plain).max() < 1e-10
    fixed = tabulated.calculator(fixed_shapes=True)
    assert abs(fixed.get_forces(atoms) - looked_up).max() < 1e-10
    assert set(used) == set(KERNELS)
    assert (fixed.fixed_step.recordings, fixed.fixed_step.refusal) == (1, "")
