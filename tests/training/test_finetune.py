"""Fine-tuning: what comes from the base, what learns, new elements, energy bias, replay and forgetting."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io import write

import dpa1
from dpa1.batch import make_batch
from dpa1.config.model import ModelConfig
from dpa1.config.run import config_from, load_config
from dpa1.data.dataset import ListDataset
from dpa1.data.read import read
from dpa1.errors import UserError
from dpa1.frames import from_ase
from dpa1.model.adapt import adapt, parents
from dpa1.model.file import load_model, save_model, version_of
from dpa1.model.potential import Potential
from dpa1.model.replay import attach_replay
from dpa1.training import finetune
from dpa1.training.defaults import (
    ENOUGH,
    LEAST_RATE,
    MANY_RATE,
    RATE,
    batch_for,
    choose,
    distinct_compositions,
    method_for,
    rate_for,
    steps_for,
)
from dpa1.training.finetune import Change, _measured
from dpa1.training.residual_bias import fit_shift
from tests.training.toy import MODEL, emt_frames

QUICK = {"training": {"threads": 1, "device": "cpu", "batch_frames": 2}}


def small(levels=("emt",), elements=("Al", "Cu"), seed=0, **options):
    torch.manual_seed(seed)
    potential = Potential(ModelConfig(**{**MODEL, **options}, elements=elements, mean_neighbors=18), levels)
    potential.energy_bias += torch.arange(len(elements), dtype=torch.float64) + 1.0
    return potential


def frames_of(n, seed=0, elements=("Cu", "Al"), level=None):
    return [
        from_ase(a, source="emt", index=k).replace(level=level) for k, a in enumerate(emt_frames(n, seed, elements))
    ]


@pytest.fixture
def base(tmp_path):
    potential = small()
    attach_replay(potential, frames_of(8, seed=7))
    save_model(potential, tmp_path / "base.dpa1")
    return tmp_path / "base.dpa1"


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "new.xyz", emt_frames(12))
    write(tmp_path / "test.xyz", emt_frames(4, seed=9))
    return tmp_path / "new.xyz"


def tune(base, data, tmp_path, **options):
    options = {"steps": 6, "config": QUICK, "quiet": True, "output": tmp_path / "out", **options}
    result = dpa1.finetune(base, data, **options)
    return result, load_model(result.model)


def energies(potential, frames, level=None):
    return potential.predict(make_batch(frames, potential.cutoff), level=level)["energy"].numpy()


@pytest.mark.parametrize("electron_configuration", [False, True])
@pytest.mark.parametrize("type_embedding", [2, 3, 4, 6])
def test_an_adapted_model_says_what_the_base_says(type_embedding, electron_configuration):
    """Also where the widths make the type-embedding layer add an identity, to the base or to the larger model."""
    old = small(("a", "b"), type_embedding=type_embedding, fitting_per_level=True, type_embedding_bias=True, precision="float64",
                electron_configuration=electron_configuration)  # fmt: skip
    with torch.no_grad():
        old.level_fittings[0].output.weight.mul_(2.0)
        old.energy_bias[1] += 5.0
    new = adapt(old, {"Ag": "Cu"}, ("b", "a", "c"), (1, 0, 1))
    frames = frames_of(3)
    for level, of in (("b", "b"), ("a", "a"), ("c", "b")):
        np.testing.assert_allclose(energies(new, frames, level), energies(old, frames, of), rtol=1e-6)
    if not electron_configuration:
        silver = [f.replace(numbers=np.where(f.numbers == 29, 47, f.numbers)) for f in frames]
        np.testing.assert_allclose(energies(new, silver, "a"), energies(old, frames, "a"), rtol=1e-6)
    assert new.elements == ("Al", "Cu", "Ag")


def test_the_nearest_trained_element_is_the_parent():
    potential = small(elements=("H", "O", "Na", "S", "Cu", "La"))
    assert parents(potential, ["O", "K", "Se", "Ag", "Ce"]) == {"K": "Na", "Se": "S", "Ag": "Cu", "Ce": "La"}
    potential.info["trained_elements"] = ["H", "Cu"]
    assert parents(potential, ["O", "H"]) == {"O": "Cu"} or parents(potential, ["O", "H"]) == {"O": "H"}


def learned(base, tuned):
    """Which groups of tensors differ."""
    old, new = load_model(base).state_dict(), tuned.state_dict()
    assert set(old) == set(new)
    groups = {}
    for name in old:
        group = name.split(".")[1] if name.startswith("descriptor") else name.split(".")[0]
        groups[group] = groups.get(group, False) or not torch.equal(old[name], new[name])
    return {group for group, differs in groups.items() if differs}


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("full", {"type_embedding", "embedding", "attention", "fitting", "energy_bias"}),
        ("freeze", {"attention", "fitting", "energy_bias"}),
        ("heads", {"fitting", "energy_bias"}),
        ("lora", {"attention", "fitting", "energy_bias"}),
    ],
)
def test_each_method_changes_what_it_says(base, data, tmp_path, method, groups):
    _, tuned = tune(base, data, tmp_path, method=method)
    assert learned(base, tuned) == groups
    assert tuned.levels == ("emt",)
    assert tuned.config == load_model(base).config


def test_lora_updates_have_low_rank(base, data, tmp_path):
    config = {**QUICK, "finetune": {"rank": 2}}
    _, tuned = tune(base, data, tmp_path, method="lora", config=config)
    old, new = load_model(base).state_dict(), tuned.state_dict()
    change = (new["fitting.hidden.layers.1.weight"] - old["fitting.hidden.layers.1.weight"]).double()
    values = torch.linalg.svdvals(change)
    assert values[0] > 1e-4
    assert values[2] < 1e-3 * values[0]


def test_a_lora_run_resumes_exactly(base, data, tmp_path):
    whole, _ = tune(
        base,
        data,
        tmp_path,
        method="lora",
        steps=6,
        output=tmp_path / "whole",
        config={**QUICK, "finetune": {"rank": 2}},
    )
    part, _ = tune(base, data, tmp_path, method="lora", steps=6, output=tmp_path / "part",
                   config={"training": {**QUICK["training"], "checkpoint_every": 3, "keep_checkpoints": 5}, "finetune": {"rank": 2}})  # fmt: skip
    for path in (part.folder / "checkpoints").glob("step-*6.ckpt"):
        path.unlink()
    again = dpa1.train(part.folder / "config.yaml", resume=True, quiet=True)
    a, b = load_model(whole.model).state_dict(), load_model(again.model).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["full", "heads", "lora"])
def test_a_new_element_is_added_and_learns(base, tmp_path, method):
    write(tmp_path / "silver.xyz", emt_frames(6, elements=("Ag", "Cu")))
    result, tuned = tune(base, tmp_path / "silver.xyz", tmp_path, method=method)
    assert tuned.elements == ("Al", "Cu", "Ag")
    assert "new element Ag starts from Cu" in (result.folder / "train.log").read_text()
    old, new = load_model(base).descriptor.type_embedding(), tuned.descriptor.type_embedding()
    assert not torch.allclose(new[2], old[1], atol=1e-5)
    if method != "full":
        torch.testing.assert_close(new[:2], old)
    assert "Ag" in tuned.trained_elements


def test_energies_of_another_origin_are_met_by_the_bias(base, tmp_path):
    frames = emt_frames(12)
    for atoms in frames:
        atoms.calc.results["energy"] += sum({"Cu": -100.0, "Al": 30.0}[s] for s in atoms.symbols)
    write(tmp_path / "new.xyz", frames)
    result, tuned = tune(base, tmp_path / "new.xyz", tmp_path, steps=1)
    old = load_model(base)
    shift = (tuned.energy_bias - old.energy_bias)[0]
    assert shift[1] - shift[0] == pytest.approx(-130.0, abs=15)
    text = (result.folder / "train.log").read_text()
    assert "rank 2 of 2" in text
    assert "determined" in text
    assert dpa1.evaluate(tuned, read(tmp_path / "new.xyz"))["energy_rmse"] < 3.0


def table(found):
    return found.table(np.zeros(len(found.elements)), found.shift)


def test_what_the_frames_leave_open_follows_the_mean_shift():
    counts = np.array([[4.0, 2.0, 0.0], [8.0, 4.0, 0.0]])
    found = fit_shift(counts, counts @ [0.3, 0.3, 0.0], ("H", "O", "Cu"), {})
    assert found.fit.rank == 1
    np.testing.assert_allclose(found.shift, [0.3, 0.3, 0.0], atol=1e-6)
    assert "not determined separately: H, O (rank 1 of 2)" in table(found)
    assert table(found).count("not by itself") == 2


def compositions(rng, frames, elements):
    """(F, E) counts of cells of 20 atoms that hold five elements each."""
    return np.array([rng.multinomial(20, rng.permutation([0.2] * 5 + [0.0] * (elements - 5))) for _ in range(frames)])


@pytest.mark.parametrize("frames", [2, 8, 31, 32, 64, 300])
def test_a_refit_does_no_harm_however_few_the_frames(frames):
    rng = np.random.default_rng(frames)
    names = chemical_symbols[1:32]
    before, after = [], []
    for _ in range(10):
        truth = rng.normal(-0.1, 0.1, 31)
        counts, others = compositions(rng, frames, 31), compositions(rng, 200, 31)
        per_atom = counts @ truth / 20 + rng.normal(0, 0.15, frames)
        shift = fit_shift(counts, 20 * per_atom, names, {}).shift
        before.append((others @ truth / 20) ** 2)
        after.append((others @ (truth - shift) / 20) ** 2)
    assert np.mean(after) < np.mean(before)


def test_a_constant_per_atom_is_met_whole():
    rng = np.random.default_rng(0)
    counts = compositions(rng, 31, 31)
    residuals = counts @ rng.normal(0, 0.1, 31) + rng.normal(0, 2.0, 31)
    small, large = (
        fit_shift(counts, residuals + constant * 20, chemical_symbols[1:32], {}) for constant in (0.0, -800.0)
    )
    np.testing.assert_allclose(large.shift - small.shift, -800.0, atol=1e-6)


@pytest.mark.parametrize("frames", [2, 4, 8, 12])
def test_large_constants_per_element_are_met_as_far_as_the_frames_tell(frames):
    rng = np.random.default_rng(1)
    truth, counts = rng.normal(-800, 300, 8), compositions(rng, frames, 8)
    per_atom = counts @ truth / 20 + rng.normal(0, 0.05, frames)
    found = fit_shift(counts, 20 * per_atom, chemical_symbols[1:9], {})
    assert found.rms < 0.1
    between = counts[:-1] + counts[1:]  # of cells made of two of the frames
    np.testing.assert_allclose(between @ found.shift / 40, between @ truth / 40, atol=0.15)
    assert ("not by itself" in table(found)) == (frames < 8)


def test_a_large_shift_that_rests_on_one_frame_is_pointed_out():
    rng = np.random.default_rng(2)
    counts = np.hstack([rng.integers(4, 9, (20, 2)), np.zeros((20, 1))]).astype(float)
    counts[3, 2] = 4
    residuals = np.where(np.arange(20) == 3, 500.0, 0.1)
    found = fit_shift(counts, residuals, ("O", "Fe", "Cs"), {})
    assert "check the energy of the only frame with Cs" in table(found)
    assert "check the energy" not in table(fit_shift(counts, 0 * residuals, ("O", "Fe", "Cs"), {}))


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_what_the_frames_determine_is_met_however_noisy_they_are(noise):
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 60, (23, 1)).astype(float)
    per_atom = -0.35 + noise * rng.normal(size=23)
    found = fit_shift(counts, per_atom * counts[:, 0], ("Ge",), {})
    assert found.shift[0] == pytest.approx(per_atom.mean(), rel=2e-3)


def test_the_table_shows_the_bias_before_and_after(base, data, tmp_path):
    isolated = Atoms("Cu", positions=[[0, 0, 0]])
    isolated.calc = SinglePointCalculator(isolated, energy=-7.25)
    write(tmp_path / "atom.xyz", [*emt_frames(6), isolated])
    for source, config, expected in (
        (data, {**QUICK["training"], "energy_bias": {"Cu": -3.5}}, "-3.5000  fixed"),
        (tmp_path / "atom.xyz", QUICK["training"], "  fixed"),
    ):
        result, tuned = tune(base, source, tmp_path, config={"training": config}, output=tmp_path / source.stem)
        text = (result.folder / "train.log").read_text()
        first, last = (line[line.index("  Cu ") :] for line in text.splitlines() if "  Cu  " in line)
        assert first.split()[2] == f"{load_model(base).energy_bias[0, 1]:.4f}"
        assert last.split()[3] == f"{tuned.energy_bias[0, 1]:.4f}"
        assert first.endswith(expected)
        assert last.endswith(expected)


def test_without_energies_the_base_is_not_called_refitted(base, tmp_path):
    frames = emt_frames(6)
    for atoms in frames:
        atoms.calc.results = {"forces": atoms.calc.results["forces"]}
    write(tmp_path / "forces.xyz", frames)
    write(tmp_path / "test.xyz", emt_frames(2, seed=9))
    result, _ = tune(base, tmp_path / "forces.xyz", tmp_path, test=tmp_path / "test.xyz", steps=1)
    text = (result.folder / "train.log").read_text()
    assert "it stays as it is" in text
    assert "bias refitted" not in text
    assert "bias refitted" not in (result.folder / "report.html").read_text(encoding="utf-8")


def test_fewer_frames_than_elements_is_said(tmp_path, base):
    write(tmp_path / "one.xyz", emt_frames(1))
    result, _ = tune(base, tmp_path / "one.xyz", tmp_path)
    text = (result.folder / "train.log").read_text()
    assert "fewer frames (1) than elements (2)" in text
    assert "too few to hold any out" in text
    assert "Errors before and after are not measured" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_forgetting_is_measured_and_reported(base, data, tmp_path):
    result, tuned = tune(base, data, tmp_path, test=tmp_path / "test.xyz")
    text = (result.folder / "train.log").read_text()
    before = dpa1.evaluate(load_model(base), load_model(base).replay)
    line = next(line for line in text.splitlines() if "replay set  " in line)
    assert f"{1e3 * before['force_rmse']:.4g}" in line
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>Fine-tuning run" in page
    assert "Before and after" in page
    assert "Forgetting" in page
    assert tuned.info["finetuned"]["replay_errors"]["after"]["force_rmse"] > 0
    assert not tuned.replay


def test_replay_keeps_the_old_level(base, data, tmp_path):
    _, tuned = tune(base, data, tmp_path, replay=0.5, steps=10)
    assert tuned.levels == ("emt", "finetuned")
    old = load_model(base)
    torch.testing.assert_close(tuned.energy_bias[0], old.energy_bias[0])
    assert not torch.equal(tuned.energy_bias[1], old.energy_bias[0])
    assert len(tuned.replay) == len(old.replay)
    assert tuned.info["finetuned"]["replay_errors"]["before"]["n_frames"] == 2


def test_frames_that_measure_forgetting():
    """A fourth of every level, and of sources that come in turn not always the same; of few frames at least one."""
    levels = ["a", "b", "a", "c"] * 8
    held = _measured(levels)
    assert [int(held[[k for k, level in enumerate(levels) if level == wanted]].sum()) for wanted in "abc"] == [4, 2, 2]
    assert len({int(k) % 4 for k in held.nonzero()[0]}) > 1
    assert (held == _measured(levels)).all()
    assert _measured(["a", "b"]).tolist() == [False, True]


def test_a_level_without_frames_to_train_on(base, data, tmp_path):
    """The base knows it, and its replay set holds a single frame of it, which serves to measure."""
    old = load_model(base)
    wide = adapt(old, {}, (*old.levels, "other"), (0, 0))
    frames = frames_of(4, seed=7)
    attach_replay(wide, [frame.replace(level="emt") for frame in frames[:3]] + [frames[3].replace(level="other")])
    save_model(wide, tmp_path / "wide.dpa1")
    _, tuned = tune(tmp_path / "wide.dpa1", data, tmp_path, replay=0.5, steps=2, level="emt")
    assert "other" in tuned.levels


def test_a_replay_set_travels_in_the_file(tmp_path):
    potential = small(("a", "b"))
    frames = frames_of(3, level="b")
    frames[1] = frames[1].replace(virial=None, forces=None)
    attach_replay(potential, frames)
    assert version_of(potential) == 3
    save_model(potential, tmp_path / "m.dpa1")
    found = load_model(tmp_path / "m.dpa1").replay
    for old, new in zip(frames, found, strict=True):
        assert new.level == "b"
        assert new.energy == old.energy
        np.testing.assert_allclose(new.positions, old.positions, atol=1e-6)
        np.testing.assert_allclose(new.cell, old.cell, atol=1e-6)
    assert found[1].forces is None
    np.testing.assert_allclose(found[2].virial, frames[2].virial, atol=1e-5)
    potential.replay = ()
    assert version_of(potential) == 1


def refused(*words, **options):
    with pytest.raises(UserError) as error:
        dpa1.finetune(**{"config": QUICK, "quiet": True, **options})
    for word in words:
        assert word in str(error.value), str(error.value)
    assert not (options["output"] / "config.yaml").exists()


def test_bad_input(base, data, tmp_path):
    given = {"base": base, "data": data, "output": tmp_path / "out"}
    refused("unknown level of theory 'pbx'", "emt", **{**given, "level": "pbx"})
    refused("'model.cutoff' is 5.0", "has 4.0", **{**given, "config": {"model": {"cutoff": 5.0}}})
    both = [*emt_frames(3, seed=9), emt_frames(2)[1]]
    both[3].positions += 1.0
    write(tmp_path / "both.xyz", both)
    refused("1 of 4 test frames", "both.xyz, frame 3 =", "new.xyz, frame 1", **{**given, "test": tmp_path / "both.xyz"})
    refused("1 of 4 validation frames", **{**given, "valid": tmp_path / "both.xyz"})
    save_model(small(("pbe", "r2scan")), tmp_path / "two.dpa1")
    refused("pbe, r2scan", "--level", **{**given, "base": tmp_path / "two.dpa1"})
    save_model(small(), tmp_path / "bare.dpa1")
    refused("carries no replay set", **{**given, "base": tmp_path / "bare.dpa1", "replay": 0.2})
    refused("keeps its level of theory 'emt'", **{**given, "new_level": "emt", "replay": 0.2})
    save_model(small(exclude_elements=("Cu",)), tmp_path / "without.dpa1")
    refused("leaves Cu out of its energy", **{**given, "base": tmp_path / "without.dpa1"})
    refused("method", **{**given, "method": "most"})
    refused("rank belongs to method: lora", **{**given, "method": "full", "config": {"finetune": {"rank": 3}}})
    refused("write frames to a file first", **{**given, "data": frames_of(3)})
    refused("data.valid", **{**given, "valid": 1})
    refused("no such file", **{**given, "base": tmp_path / "none.dpa1"})


def test_defaults_follow_the_amount_of_data(base, tmp_path):
    write(tmp_path / "many.xyz", emt_frames(40))
    result, _ = tune(base, tmp_path / "many.xyz", tmp_path)
    text = (result.folder / "train.log").read_text()
    assert "method: full, because 36 training frames are enough" in text
    assert result.valid["n_frames"] == 4


def test_arguments_win_over_the_configuration_only_where_they_are_given(base, data, tmp_path):
    config = {**QUICK, "seed": 7, "output": str(tmp_path / "there"), "finetune": {"replay": 0.3, "level": "emt"}}
    result, tuned = tune(base, data, tmp_path, config=config, output=None)
    assert result.folder == tmp_path / "there"
    written = load_config(result.folder / "config.yaml")
    assert (written.seed, written.finetune.replay, written.finetune.level) == (7, 0.3, "emt")
    assert tuned.levels == ("emt", "finetuned")
    result, tuned = tune(base, data, tmp_path, config=config, seed=3, replay=0.0)
    assert result.folder == tmp_path / "out"
    written = load_config(result.folder / "config.yaml")
    assert (written.seed, written.finetune.replay) == (3, 0.0)
    assert tuned.levels == ("emt",)


def test_frames_of_the_replay_set_are_no_test_of_a_model_that_is_trained_on_them(base, data, tmp_path):
    write(tmp_path / "seen.xyz", [*emt_frames(2, seed=9), *emt_frames(3, seed=7)])
    given = {"base": base, "data": data, "output": tmp_path / "out", "replay": 0.3}
    refused("3 of 5 test frames", "replay set", **{**given, "test": tmp_path / "seen.xyz"})
    refused("3 of 5 validation frames", "replay set", **{**given, "valid": tmp_path / "seen.xyz"})
    result, _ = tune(base, data, tmp_path, test=tmp_path / "seen.xyz")
    assert "note: the base was trained on 3 of the 5 test frames" in (result.folder / "train.log").read_text()


@pytest.mark.parametrize(
    ("force", "energy", "named"),
    [
        (0.2, 0.1, "force"),
        (0.05, 0.1, ""),
        (0.05, 9.0, "energy"),
        (0.2, 0.2, "force and energy"),
        (np.nan, 0.2, "energy"),
    ],
)
def test_a_worse_model_is_called_worse(force, energy, named):
    def errors(force, energy):
        return {"test": {"force_rmse": force, "energy_rmse": energy, "virial_rmse": np.nan, "n_frames": 3}}

    nothing = force if np.isnan(force) else 0.1
    change = Change("pbe", "lora", {}, before=errors(nothing, 0.1), after=errors(force, energy))
    said = finetune.table(change)
    assert ("warning" in said) is bool(named)
    assert f"test data's {named} errors" in said or not named


@pytest.mark.parametrize(("after", "named"), [(0.1, ""), (0.25, "2.5 times"), (np.nan, "")])
def test_what_the_base_forgot_is_said(after, named):
    def errors(force):
        return {"force_rmse": force, "energy_rmse": 0.1, "virial_rmse": np.nan, "n_frames": 3}

    said = finetune.table(Change("pbe", "lora", {}, forgotten={"before": errors(0.1), "after": errors(after)}))
    assert ("note" in said) is bool(named)
    assert named in said


def test_test_frames_that_choose_the_best_model_are_pointed_out(base, data, tmp_path):
    both = tmp_path / "test.xyz"
    result, _ = tune(base, data, tmp_path, valid=both, test=both)
    assert "note: 4 of the 4 test frames are validation frames, too" in (result.folder / "train.log").read_text()


def test_steps_are_whole_numbers():
    found = [steps_for(frames) for frames in (1, 10, 100, 1000, 10_000, 10**6)]
    assert found == [400, 600, 2000, 6300, 20_000, 20_000]
    assert all(isinstance(steps, int) for steps in found)


def frame_table(formulas):
    frames = [
        from_ase(Atoms(formula, positions=5.0 * np.arange(3 * len(Atoms(formula))).reshape(-1, 3)))
        for formula in formulas
    ]
    return ListDataset(frames).table


def test_few_frames_are_learned_in_small_batches():
    assert batch_for(frame_table(["Cu10"] * 8)) == 10
    assert batch_for(frame_table(["Cu10"] * 20)) == 25
    assert batch_for(frame_table(["Cu9", "Cu10"])) == 10  # one frame
    assert batch_for(frame_table(["Cu400"] * 8)) == batch_for(frame_table(["Cu"] * 30)) == 256


@pytest.mark.parametrize(
    ("asked", "said"), [({}, "600 steps of 8 atoms"), ({"batch_frames": 2}, "600 steps of 2 frames")]
)
def test_a_batch_is_chosen_unless_it_is_asked_for(asked, said):
    frames = ListDataset([from_ase(atoms) for atoms in emt_frames(3)])
    config = config_from(
        {"data": {"train": "x.xyz"}, "training": {"steps": 600, **asked}, "finetune": {"base": "pbe"}}, "test"
    )
    assert said in "; ".join(choose(config, frames)[1])


@pytest.mark.parametrize(
    ("formulas", "rate", "method"),
    [
        (["Cu", "Au", "CuAu"], MANY_RATE, "lora"),
        (["Cu100", "Cu100", "Cu50Au50", "Cu50Au50"], RATE, "full"),  # two of four
        ([f"Cu{ENOUGH}"], RATE, "full"),
        (["Cu100", "Cu100"], 8e-4, "full"),  # a quarter of it for half of the atoms, to one digit
        (["Cu", "Cu", "Cu"], LEAST_RATE, "full"),
        ([f"Cu{n}Au" for n in range(1, 31)], RATE, "full"),
    ],
)
def test_few_frames_of_many_compositions_are_learned_slowly_and_by_few_weights(formulas, rate, method):
    table = frame_table(formulas)
    assert rate_for(table) == rate
    assert method_for(table) == method


def test_compositions_are_counted_whatever_the_cell():
    assert distinct_compositions(frame_table(["CuAu", "Au2Cu2", "Cu", "Cu2Au", "Cu4"])) == 3


@pytest.mark.parametrize(
    ("frames", "said", "rate"),
    [(5, "of many compositions", MANY_RATE), (1, "1 frame with 8 atoms would soon be", LEAST_RATE)],
)
def test_a_low_rate_is_said(base, tmp_path, frames, said, rate):
    write(tmp_path / "mixed.xyz", emt_frames(frames))  # 4 compositions, or one
    result, _ = tune(base, tmp_path / "mixed.xyz", tmp_path)
    text = (result.folder / "train.log").read_text()
    assert said in text
    assert f"learning rate {rate:g}" in text


def test_nothing_is_overwritten(base, data, tmp_path):
    tune(base, data, tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        tune(base, data, tmp_path)


def test_files_that_a_run_would_replace_are_refused(base, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.dpa1").write_bytes(base.read_bytes())
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused("out: holds model.dpa1 already", base=base, data=data, output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.dpa1", "notes.txt"]
    (tmp_path / "out" / "model.dpa1").rename(tmp_path / "out" / "errors.json")
    refused("out: holds errors.json already", base=base, data=data, output=tmp_path / "out")
    (tmp_path / "out" / "errors.json").unlink()
    tune(base, data, tmp_path, steps=1)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"data": {"train": "other.xyz"}}, ("'data.train' is other.xyz", "new.xyz", "remove it")),
        ({"finetune": {"base": "pbe"}}, ("'finetune.base' is pbe", "base.dpa1", "remove it")),
        ({"data": "other.xyz"}, ("'data' holds keys and values, not 'other.xyz'",)),
    ],
)
def test_what_the_call_contradicts_is_refused(base, data, tmp_path, own, words):
    refused(*words, base=base, data=data, output=tmp_path / "out", config={**QUICK, **own})


def test_a_base_that_does_not_say_what_it_was_trained_on(tmp_path, data):
    save_model(small(seed=1), tmp_path / "silent.dpa1")
    assert "trained_elements" not in load_model(tmp_path / "silent.dpa1").info
    _, tuned = tune(tmp_path / "silent.dpa1", data, tmp_path, steps=1)
    assert "trained_elements" not in tuned.info


def test_the_report_shows_the_bias_before_and_after(base, data, tmp_path):
    result, tuned = tune(base, data, tmp_path, steps=3)
    text = (result.folder / "report.html").read_text()
    assert "Energy bias, before the first step" in text
    after = text[text.index("Energy bias, after the last step") :]
    for value in tuned.energy_bias[0].tolist():
        assert f"{value:.4f}" in after


def test_a_run_goes_on_from_no_other_base_of_that_name(base, data, tmp_path):
    result, _ = tune(base, data, tmp_path, steps=2)
    (result.folder / "model.dpa1").unlink()
    save_model(small(seed=1), base)
    with pytest.raises(
        UserError, match=r"base\.dpa1 is not the one of this configuration: 'finetune\.digest' is .*drop the key"
    ):
        dpa1.train(result.folder / "config.yaml", resume=True, quiet=True)


def test_replayed_frames_teach_what_the_new_ones_have_no_labels_of(base, tmp_path):
    frames = emt_frames(4)
    for atoms in frames:
        atoms.calc.results = {"energy": atoms.calc.results["energy"]}
    write(tmp_path / "new.xyz", frames)
    result, tuned = tune(base, tmp_path / "new.xyz", tmp_path, replay=0.5, steps=4)
    assert "loss: energy, forces, virial, which the new frames or those replayed have" in (
        (result.folder / "train.log").read_text()
    )
    (result.folder / "model.dpa1").unlink()
    again = dpa1.train(result.folder / "config.yaml", resume=True, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), load_model(again.model).parameters(), strict=True))
    alone, _ = tune(base, tmp_path / "new.xyz", tmp_path, steps=1, output=tmp_path / "alone")
    assert "loss: energy, which the frames have" in (alone.folder / "train.log").read_text()
