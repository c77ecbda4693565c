"""Input statistics against loops over atoms and neighbours, written from the definition."""

import numpy as np
import pytest

from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.frames import from_ase
from dpa1.model.potential import Potential
from dpa1.neighbors import find_neighbors
from dpa1.training.statistics import install, measure
from tests.training.toy import emt_frames

CUTOFF, START = 4.0, 0.5
NAMES = {29: "Cu", 13: "Al", 47: "Ag"}


def rows_of(frame, sel=None, excluded=()):
    """For each atom: element and list of environment rows, nearest first, excluded pairs as zero rows (deepmd only)."""
    found = find_neighbors(frame, CUTOFF)
    distance = found.distances(frame)
    for i, z in enumerate(frame.numbers):
        mine = np.flatnonzero(found.centre == i)
        mine = mine[np.argsort(distance[mine], kind="stable")][:sel]
        rows = []
        for k in mine:
            j, r = found.neighbor[k], distance[k]
            d = frame.positions[j] - frame.positions[i] + found.shift[k] @ frame.cell
            u = (r - START) / (CUTOFF - START)
            w = 1 + u**3 * (-6 * u**2 + 15 * u - 10)
            hidden = {NAMES[z], NAMES[frame.numbers[j]]} in [set(pair) for pair in excluded]
            if hidden and sel is None:
                continue
            rows.append(np.zeros(4) if hidden else w * np.array([1 / r, *(d / r**2)]))
        if sel is not None:
            rows += [np.zeros(4)] * (sel - len(rows))
        yield NAMES[z], np.array(rows).reshape(-1, 4)


def collected(frames, **options):
    pool = {"Cu": [], "Al": []}
    for frame in frames:
        for name, rows in rows_of(frame, **options):
            pool[name].append(rows)
    return {name: np.concatenate(parts) for name, parts in pool.items()}


def measured(frames, **options):
    config = ModelConfig(
        cutoff=CUTOFF, switch_start=START, elements=("Cu", "Al", "Ag"), embedding=(4, 8), axis=4, fitting=(8,),
        **options,
    )  # fmt: skip
    return config, measure((make_batch([f], CUTOFF) for f in frames), config)


@pytest.fixture(scope="module")
def frames():
    return [from_ase(atoms) for atoms in emt_frames(3)]


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("excluded", [(), (("Cu", "Al"),)])
@pytest.mark.parametrize("sel", [12, 60])
def test_deepmd_counts_every_slot(frames, sel, excluded, subtract):
    _, found = measured(frames, convention="deepmd", sel=sel, subtract_mean=subtract, exclude_pairs=excluded)
    for k, (_, rows) in enumerate(collected(frames, sel=sel, excluded=excluded).items()):
        radial, angular = rows[:, 0], rows[:, 1:].ravel()
        std = [np.sqrt((x**2).mean() - x.mean() ** 2) for x in (radial, angular)]
        assert found.scale[k].tolist() == pytest.approx(np.maximum(std, 0.01), rel=1e-11)
        assert found.mean[k].item() == pytest.approx(radial.mean() if subtract else 0.0, rel=1e-11)
    assert found.scale[2].tolist() == [0.1, 0.1]
    assert found.mean[2] == 0.0


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("excluded", [(), (("Cu", "Al"),)])
def test_smooth_counts_real_neighbors(frames, excluded, subtract):
    _, found = measured(frames, subtract_mean=subtract, exclude_pairs=excluded)
    pool = collected(frames, excluded=excluded)
    pool["Ag"] = np.concatenate(list(pool.values()))  # not in the sample: all elements together
    for k, rows in enumerate(pool.values()):
        radial, angular = rows[:, 0], rows[:, 1:].ravel()
        mean = radial.mean() if subtract else 0.0
        scale = [np.sqrt(((radial - mean) ** 2).mean()), np.sqrt((angular**2).mean())]
        assert found.scale[k].tolist() == pytest.approx(scale, rel=1e-11)
        assert found.mean[k].item() == pytest.approx(mean, rel=1e-11)


def test_neighbor_numbers(frames):
    _, found = measured(frames)
    counts = np.concatenate([np.bincount(find_neighbors(f, CUTOFF).centre, minlength=len(f)) for f in frames])
    assert found.mean_neighbors == pytest.approx(counts.mean())
    assert found.max_neighbors == counts.max()


def test_install_keeps_the_random_numbers_and_precision(frames):
    import torch

    torch.manual_seed(5)
    config, found = measured(frames)
    potential = Potential(config.model_copy(update={"mean_neighbors": found.mean_neighbors}))
    torch.manual_seed(5)
    assert torch.equal(Potential(potential.config).fitting.output.weight, potential.fitting.output.weight)
    install(potential, found)
    assert potential.descriptor.scale.dtype == torch.float32
    assert potential.descriptor.scale[0].tolist() == pytest.approx(found.scale[0].tolist(), rel=1e-6)
