"""Files written here, computed by an installed deepmd-kit: pytest -m deepmd --deepmd-python PATH."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dpa1.interop.convert import convert
from dpa1.interop.export import to_neutral
from dpa1.interop.neutral import write_neutral
from tests.contracts.systems import NUMBERS, random_potential
from tests.golden.common import GOLDEN, assert_same, computed, frame_of
from tests.golden.test_dense_reference import deepmd_options, frames
from tests.golden.test_golden import MODELS

pytestmark = pytest.mark.deepmd
EVAL = Path(__file__).with_name("deepmd_eval.py")


def run(python: str, *arguments: str) -> None:
    done = subprocess.run([python, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["six_elements_davg", "six_elements_v2", "water_smooth"])
@pytest.mark.parametrize("suffix", [".dp", ".yaml"])
def test_reads_what_was_converted(name: str, suffix: str, tmp_path: Path, deepmd_python: str) -> None:
    if suffix == ".yaml" and name.startswith("water"):
        pytest.skip("a model of half a million numbers is slow as YAML")
    folder = next(f for f in MODELS if f.name == name)
    convert(folder / "model.dp", tmp_path / "a.dpa1")
    convert(tmp_path / "a.dpa1", tmp_path / f"b{suffix}")
    frames = folder / "cluster.npz"
    run(deepmd_python, str(EVAL), str(tmp_path / f"b{suffix}"), str(frames), str(tmp_path / "out.npz"))
    with np.load(frames) as golden, np.load(tmp_path / "out.npz") as found:
        assert_same(dict(found), {ours: golden[theirs] for ours, theirs in GOLDEN.items() if ours in found})


def test_pytorch_backend_gives_the_same_forces(tmp_path: Path, deepmd_python: str) -> None:
    folder = next(f for f in MODELS if f.name == "six_elements_strip")
    convert(folder / "model.dp", tmp_path / "a.dpa1")
    convert(tmp_path / "a.dpa1", tmp_path / "b.dp")
    run(deepmd_python, "-m", "deepmd", "convert-backend", str(tmp_path / "b.dp"), str(tmp_path / "c.pth"))
    # Not the small cell: its tied distances fall into slots as the neighbour search of the day has them.
    frames = folder / "gas_in_box.npz"
    run(deepmd_python, str(EVAL), str(tmp_path / "c.pth"), str(frames), str(tmp_path / "out.npz"))
    with np.load(frames) as golden, np.load(tmp_path / "out.npz") as found:
        assert_same(dict(found), {"energy": golden["energy"], "forces": golden["force"], "virial": golden["virial"]})
    # And back: TorchScript that DeePMD-kit wrote.
    convert(tmp_path / "c.pth", tmp_path / "d.dpa1")
    from dpa1.interop.load import load_potential

    potential = load_potential(tmp_path / "d.dpa1")
    with np.load(frames) as golden:
        assert_same(computed(potential, frame_of(golden, potential.elements)), {"forces": golden["force"]})


@settings(
    max_examples=4, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(deepmd_options(), min_size=6, max_size=6), st.integers(0, 1000))
def test_random_option_sets(tmp_path: Path, deepmd_python: str, option_sets: list[dict], seed: int) -> None:
    arguments, expected = [], []
    for k, options in enumerate(option_sets):
        potential = random_potential(options, seed + k)
        write_neutral(to_neutral(potential, "model"), tmp_path / f"{k}.dp")
        small_cell, cluster, _ = frames(seed)
        # Where ties matter, an atom's own images at equal distances have no order that one could ask for.
        frame = cluster if options["sel"] == 6 or options["slot_statistics"] else small_cell
        types = np.array([NUMBERS.index(z) for z in frame.numbers])
        box = {"box": frame.cell} if frame.pbc.all() else {}
        np.savez(tmp_path / f"{k}.npz", coord=frame.positions, type=types, **box)
        arguments += [str(tmp_path / f"{k}{end}") for end in (".dp", ".npz", ".out.npz")]
        expected.append(computed(potential, frame))
    run(deepmd_python, str(EVAL), *arguments)
    for k, ours in enumerate(expected):
        with np.load(tmp_path / f"{k}.out.npz") as found:
            assert_same(ours, dict(found))


def test_electron_configurations(deepmd_python: str) -> None:
    from dpa1.model.elements import electron_configuration

    code = (
        "from deepmd.utils.econf_embd import electronic_configuration_embedding as t\n"
        "for k, v in t.items(): print(k, *v)"
    )
    done = subprocess.run([deepmd_python, "-c", code], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 119]
    assert len(rows) == 118
    for symbol, *slots in rows:
        np.testing.assert_array_equal(electron_configuration(symbol), np.array(slots, dtype=float))
