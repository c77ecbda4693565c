"""A DeePMD-kit input.json as a run configuration."""

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpa1.batch import make_batch
from dpa1.config.run import RunConfig, config_from, read_values
from dpa1.data.read import read
from dpa1.errors import UserError
from dpa1.interop.deepmd_input import is_deepmd_input, translate
from dpa1.interop.load import load_potential
from dpa1.training.run import train
from dpa1.training.statistics import measure
from tests.interop.common import FILES

EXAMPLE = json.loads((FILES / "water_se_atten.json").read_text())
system = runpy.run_path(str(FILES / "make_deepmd.py"))["system"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of DeePMD-kit's example: inputs in se_atten, data beside it."""
    for k in range(4):
        system(tmp_path / "data" / f"data_{k}", k)
    (tmp_path / "se_atten").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "se_atten"


def changed(*changes: tuple[str, Any]) -> dict:
    """The example with dotted keys set."""
    values = copy.deepcopy(EXAMPLE)
    for key, value in changes:
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return values


def run_config(folder: Path, *changes: tuple[str, Any]) -> tuple[RunConfig, list[str]]:
    values, notes = translate(changed(*changes), folder / "input.json")
    return config_from(values, folder / "input.json"), notes


def test_the_example_of_deepmd_kit(folder: Path) -> None:
    config, notes = run_config(folder)
    model = config.model
    assert (model.convention, model.elements, model.cutoff, model.switch_start) == ("deepmd", ("O", "H"), 6.0, 0.5)
    assert (model.sel, model.embedding, model.axis, model.type_embedding) == (120, (25, 50, 100), 16, 8)
    assert (model.attention_layers, model.attention_width, model.gate, model.normalize) == (2, 128, True, True)
    assert (model.temperature, model.one_sided, model.type_input) == (1.0, True, "concat")
    # DeePMD-kit's input file has other defaults than its Python classes.
    assert not model.smooth_attention
    assert not model.subtract_mean
    assert (model.fitting, model.fitting_timestep, model.precision) == ((240, 240, 240), True, "float64")
    training = config.training
    assert (training.steps, training.batch_frames, training.learning_rate) == (1_000_000, 1, 1e-3)
    schedule = training.schedule
    assert (schedule.kind, schedule.stop, schedule.decay_steps) == ("exponential", 3.51e-08, 5000)
    assert (schedule.warmup_steps, training.clip_factor, training.clip_norm, training.ema) == (0, None, None, None)
    assert (training.log_every, training.checkpoint_every, config.seed) == (100, 1000, 10)
    assert not training.refit_bias
    assert (config.loss.energy, config.loss.force, config.loss.virial) == ((0.02, 1), (1000, 1), (0, 0))
    assert [Path(s.path).name for s in config.data.train] == ["data_0", "data_1", "data_2"]
    assert [Path(s.path).name for s in config.data.valid] == ["data_3"]
    assert all(Path(s.path).exists() for s in config.data.train)
    assert len(notes) == 1
    for key in ("stat_file", "disp_file", "post_ln", "ffn_embed_dim", "numb_btch"):
        assert key in notes[0]


def test_it_trains(folder: Path) -> None:
    small = {"neuron": [4, 8], "axis_neuron": 3, "attn": 6, "rcut": 4.0, "sel": 20}
    changes = [(f"model.descriptor.{k}", v) for k, v in small.items()]
    config, _ = run_config(
        folder, *changes, ("model.fitting_net.neuron", [6]), ("training.numb_steps", 2), ("training.disp_freq", 1)
    )
    result = train(config.model_copy(update={"output": str(folder / "run")}), quiet=True)
    assert result.steps == 2
    potential = load_potential(result.model)
    assert potential.config.convention == "deepmd"
    assert potential.config.sel == 20


@pytest.mark.parametrize(
    ("key", "value", "where", "expected"),
    [
        ("training.batch_size", None, "", None),
        ("training.training_data.batch_size", [2, 2, 2], "training.batch_frames", 2),
        ("training.training_data.batch_size", "auto", "training.batch_atoms", 32),
        ("training.training_data.batch_size", "auto:64", "training.batch_atoms", 64),
        ("training.training_data.batch_size", "max:96", "training.batch_atoms", 96),
        ("training.training_data.batch_size", "filter:96", "training.batch_atoms", 96),
        ("training.gradient_max_norm", 5.0, "training.clip_norm", 5.0),
        ("training.enable_ema", True, "training.ema", 0.999),
        ("training.change_bias_after_training", True, "training.refit_bias", True),
        ("training.max_ckpt_keep", 3, "training.keep_checkpoints", 3),
        ("training.tensorboard", True, "loggers", ("tensorboard",)),
        ("training.seed", 0, "seed", 0),
        ("optimizer", {"type": "AdamW", "weight_decay": 0.01}, "training.optimizer.weight_decay", 0.01),
        ("optimizer", {"type": "Adam", "adam_beta1": 0.8}, "training.optimizer.betas", (0.8, 0.999)),
        ("learning_rate.warmup_steps", 500, "training.schedule.warmup_steps", 500),
        ("learning_rate.warmup_ratio", 0.01, "training.schedule.warmup_steps", 10000),
        ("learning_rate.warmup_start_factor", 0.2, "training.schedule.warmup_start", 0.2),
        ("learning_rate.decay_rate", 0.9, "training.schedule.decay_rate", 0.9),
        ("learning_rate.type", "cosine", "training.schedule.kind", "cosine"),
        ("learning_rate.type", "wsd", "training.schedule.decay_fraction", 0.1),
        ("loss.use_huber", True, "loss.kind", "huber"),
        ("loss.loss_func", "mae", "loss.kind", "mae"),
        ("loss.intensive_ener_virial", True, "loss.intensive", True),
        ("loss.start_pref_v", 1.0, "loss.virial", (0.0, 0.0)),
        ("model.preset_out_bias", {"energy": [None, -1.5]}, "training.energy_bias", {"H": -1.5}),
        ("model.atom_exclude_types", [1], "model.exclude_elements", ("H",)),
        ("model.pair_exclude_types", [[0, 1]], "model.exclude_model_pairs", (("O", "H"),)),
        ("model.descriptor.exclude_types", [[1, 1]], "model.exclude_pairs", (("H", "H"),)),
        ("model.descriptor.sel", [40, 80], "model.sel", 120),
        ("model.descriptor.precision", "float32", "model.precision", "float32"),
        ("model.descriptor.smooth_type_embdding", True, "model.smooth_attention", True),
        ("model.descriptor.set_davg_zero", False, "model.subtract_mean", True),
        ("model.descriptor.stripped_type_embedding", True, "model.type_input", "strip"),
        ("training.validation_data", None, "data.valid", None),
    ],
)
def test_keys_and_what_becomes_of_them(folder: Path, key: str, value: Any, where: str, expected: Any) -> None:
    if not where:
        with pytest.raises(UserError, match=r"unknown key 'training\.batch_size'"):
            run_config(folder, (key, value))
        return
    found: Any = run_config(folder, (key, value))[0]
    for part in where.split("."):
        found = getattr(found, part)
    assert found == expected


def test_se_atten_v2_has_its_own_defaults(folder: Path) -> None:
    model = run_config(folder, ("model.descriptor.type", "se_atten_v2"))[0].model
    assert (model.type_input, model.smooth_attention, model.subtract_mean) == ("strip", True, True)
    with pytest.raises(UserError, match="fixed by se_atten_v2"):
        run_config(folder, ("model.descriptor.type", "se_atten_v2"), ("model.descriptor.smooth_type_embedding", False))


@pytest.mark.parametrize(("steps", "every"), [(3000, 100), (300, 4), (1_000_000, 5000)])
def test_stairs_of_a_short_run(folder: Path, steps: int, every: int) -> None:
    config, _ = run_config(folder, ("training.numb_steps", steps))
    schedule = config.training.schedule
    assert schedule.decay_steps == (every if steps >= 1_000_000 else (100 if steps // 10 > 100 else steps // 100 + 1))
    assert schedule.decay_steps == every


def test_probabilities_of_systems(folder: Path) -> None:
    def weights(*changes: tuple[str, Any]) -> list[float]:
        return [s.weight for s in run_config(folder, *changes)[0].data.train]

    assert weights() == [1.0, 1.0, 1.0]
    assert weights(("training.training_data.auto_prob", "prob_uniform")) == pytest.approx([1.0, 1.0, 1.0])
    assert weights(("training.training_data.sys_probs", [0.5, 0.25, 0.25])) == pytest.approx([1.5, 0.75, 0.75])
    blocks = "prob_sys_size;0:1:0.8;1:3:0.2"
    assert weights(("training.training_data.auto_prob", blocks)) == pytest.approx([2.4, 0.3, 0.3])
    for bad in ("uniform", "prob_sys_size;0:1"):
        with pytest.raises(UserError, match="auto_prob"):
            weights(("training.training_data.auto_prob", bad))
    with pytest.raises(UserError, match="add up to 1"):
        weights(("training.training_data.sys_probs", [0.5, 0.25, 0.5]))


def test_systems_are_found(folder: Path) -> None:
    def names(systems: Any, patterns: Any = None) -> list[str]:
        data = {"systems": systems, "rglob_patterns": patterns, "batch_size": 1}
        config, _ = run_config(folder, ("training.training_data", data))
        return [Path(s.path).name for s in config.data.train]

    assert names("data") == ["data"]
    assert names("../data", ["data_[02]"]) == ["data_0", "data_2"]
    with pytest.raises(UserError, match="rglob_patterns"):
        names("../data", ["nothing*"])
    with pytest.raises(UserError, match="path or a list"):
        names(3)


def test_sel_from_the_data(folder: Path) -> None:
    frames = [frame for k in range(3) for frame in read(str(folder.parent / "data" / f"data_{k}"))]
    most = max(int(np.bincount(make_batch([f], 4.0).centre.numpy()).max()) for f in frames)
    config, notes = run_config(folder, ("model.descriptor.sel", "auto:1.5"), ("model.descriptor.rcut", 4.0))
    assert config.model.sel == -(-int(most * 1.5) // 4) * 4
    assert any("sel" in note for note in notes)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.descriptor.atn", 64, "did you mean 'attn'"),
        ("model.descriptor.attn_mask", True, "attn_mask"),
        ("model.descriptor.lmax", 2, "lmax"),
        ("model.descriptor.type", "se_e2_a", "only dpa1"),
        ("model.descriptor.trainable", False, "trainable"),
        ("model.descriptor.ffn", True, "given up"),
        ("model.descriptor.sel", "many", "descriptor.sel"),
        ("model.descriptor.rcut", -1.0, "'descriptor.rcut'"),
        ("model.descriptor.neuron", [4, "x"], "'descriptor.neuron.1'"),
        ("model.fitting_net.activation_function", "tanhh", "'fitting_net.activation_function'.*tanh"),
        ("learning_rate.warmup_ratio", "often", "not what DeePMD-kit expects"),
        ("model.fitting_net.numb_fparam", 1, "numb_fparam"),
        ("model.fitting_net.atom_ener", [1.0, None], "preset_out_bias"),
        ("model.fitting_net.type", "dos", "only 'ener'"),
        ("model.fitting_net.neurons", [1], "did you mean 'neuron'"),
        ("model.spin", {"use_spin": [True]}, "model.spin"),
        ("model.use_srtab", "zbl.txt", "use_srtab"),
        ("model.modifier", {"type": "dipole_charge"}, "modifier"),
        ("model.type_map", ["O", "X1"], "no chemical element"),
        ("model.model_dict", {}, "multi-task"),
        ("model.preset_out_bias", {"energy": [1.0]}, "one value or null per type"),
        ("loss.type", "dos", "loss.type"),
        ("loss.relative_f", 1.0, "relative_f"),
        ("loss.start_pref_h", 1.0, "Hessian"),
        ("loss.start_perf_e", 1.0, "did you mean 'start_pref_e'"),
        ("loss.loss_func", "rmse", "mse or mae"),
        ("optimizer", {"type": "LKF", "kf_blocksize": 5120}, "use Adam"),
        ("learning_rate.type", "poly", "exp, cosine or wsd"),
        ("learning_rate.start_lr", None, "start_lr"),
        ("learning_rate.stop_lr_ratio", 0.1, "both stop_lr"),
        ("training.training_data.min_pair_dist", 0.5, "min_pair_dist"),
        ("training.training_data.batch_size", "mixed:32", "batch_size"),
        ("training.training_data.batch_size", 0, "batch_size"),
        ("training.training_data.batch_size", "filter:4", "no system"),
        ("training.training_data", None, "training_data"),
        ("training.numb_epoch", 10, "numb_steps"),
        ("training.numb_step", 10, None),
        ("training.nubm_steps", 10, "did you mean 'numb_steps'"),
        ("trainig", {}, "did you mean 'training'"),
        ("nvnmd", {"enable": True}, "nvnmd"),
    ],
)
def test_one_sentence_for_what_is_not_supported(folder: Path, key: str, value: Any, words: str | None) -> None:
    if words is None:
        assert run_config(folder, (key, value))[0].training.steps == value
        return
    with pytest.raises(UserError, match=words) as error:
        run_config(folder, (key, value))
    assert "input.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_which_files_are_deepmd_kits() -> None:
    assert is_deepmd_input(read_values(FILES / "water_se_atten.json"))
    assert is_deepmd_input({"model": {"model_dict": {}}})
    assert not is_deepmd_input({"model": {"size": "small"}, "data": {}})
    assert not is_deepmd_input([1, 2])


def test_statistics_and_energy_bias_are_deepmd_kits(tmp_path: Path) -> None:
    # checkpoint.pt was trained on this system with set_davg_zero: false and 20 % of its slots cut off.
    frames = read(str(system(tmp_path / "a", 1)))
    potential = load_potential(FILES / "checkpoint.pt")
    found = measure([make_batch([frame], potential.cutoff) for frame in frames], potential.config)
    np.testing.assert_allclose(found.mean, potential.descriptor.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scale, potential.descriptor.scale, rtol=1e-12)
    counts = np.array([[(f.numbers == z).sum() for z in (8, 1)] for f in frames])
    expected = np.linalg.lstsq(counts, np.array([f.energy for f in frames]), rcond=None)[0]
    np.testing.assert_allclose(potential.energy_bias[0], expected, rtol=1e-10)
