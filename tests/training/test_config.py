"""Whatever a configuration holds, it is read or refused in one sentence that names the file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpa1.config.run import RunConfig, complete_values, config_from, load_config, parse_yaml, write_config
from dpa1.errors import UserError

KEYS = sorted(
    {name for section in ("data", "model", "training", "loss") for name in RunConfig.model_fields[section].annotation.model_fields}
    | set(RunConfig.model_fields)
    | {"schedule", "optimizer", "kind", "betas", "path", "weight", "stepps", "", "Loss"}
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=5),
    st.sampled_from(["small", "mse", "deepmd", "H", "Xx", "float32", "nan", "1e-3"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


def refused_in_one_sentence(call):
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert "run.yaml" in message or "cannot be set" in message
    return None


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["data", "model", "training", "loss", "seed", "output", "loggers", "sead"]), VALUES)
)
def test_any_values(values):
    refused_in_one_sentence(lambda: config_from(values, "run.yaml"))


@settings(max_examples=300, deadline=None)
@given(
    section=st.sampled_from(["model", "training", "loss"]),
    values=st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=3),
)
def test_any_section(section, values):
    config = refused_in_one_sentence(lambda: config_from({"data": {"train": "x.xyz"}, section: values}, "run.yaml"))
    # Epochs have become steps before a run writes its configuration.
    if config is not None and config.training.epochs is None:
        # What is accepted can be written and read again without a change.
        assert config_from(json.loads(json.dumps(complete_values(config))), "run.yaml") == config


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode("utf-8", "replace"))))
@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_any_file(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("config", numbered=True) / f"run.yaml.{suffix}"
    path.write_bytes(content)
    refused_in_one_sentence(lambda: load_config(path))


@given(
    key=st.lists(st.sampled_from(["training", "steps", "data", "schedule", "kind", ""]), min_size=1, max_size=4),
    value=LEAVES,
)
@settings(max_examples=200, deadline=None)
def test_any_override(key, value):
    refused_in_one_sentence(lambda: config_from({"data": {"train": "x"}}, "run.yaml", {".".join(key): value}))


def test_the_three_formats_agree(tmp_path):
    texts = {
        "yaml": "data: {train: a.xyz}\ntraining: {learning_rate: 1e-3, steps: 1_000}\nloss: {force: 10}\n",
        "toml": "[data]\ntrain = 'a.xyz'\n[training]\nlearning_rate = 1e-3\nsteps = 1000\n[loss]\nforce = 10\n",
        "json": '{"data": {"train": "a.xyz"}, "training": {"learning_rate": 1e-3, "steps": 1000}, "loss": {"force": 10}}',
    }
    found = []
    for suffix, text in texts.items():
        path = tmp_path / f"c.{suffix}"
        path.write_text(text)
        found.append(load_config(path))
    assert found[0] == found[1] == found[2]
    assert found[0].training.learning_rate == 1e-3
    assert found[0].loss.force == (10.0, 10.0)
    write_config(found[0], tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == found[0]


def test_data_beside_the_configuration_are_found(tmp_path):
    (tmp_path / "a.xyz").write_text("")
    path = tmp_path / "c.yaml"
    path.write_text("data: {train: [{path: a.xyz}, b.xyz]}")
    config = load_config(path)
    assert [source.path for source in config.data.train] == [str(tmp_path / "a.xyz"), "b.xyz"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "data: {train: a.xyz}\ndata: {train: b.xyz}", ["given twice", "data"]),
        ("c.yaml", "data: [", ["not valid YAML"]),
        ("c.yaml", "!!python/object/apply:os.system ['echo']", ["not valid YAML"]),
        ("c.yaml", "", ["expected key: value pairs"]),
        ("c.json", "{", ["not valid JSON"]),
        ("c.toml", "=", ["not valid TOML"]),
        ("c.txt", "", [".yaml, .json or .toml"]),
        ("c.yaml", "data: {train: a.xyz}\nmodel: {size: smal}", ["model.size"]),
        ("c.yaml", "training: {steps: 3}", ["'data'", "required"]),
        ("c.yaml", "data: {train: a.xyz}\nmodel: {embedding: []}", ["model.embedding", "at least 1"]),
        ("c.yaml", "data: {train: a.xyz}\nmodel: {fitting: []}", ["model.fitting", "at least 1"]),
    ],
)
def test_sentences(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "d.yaml")


def test_numbers_in_yaml():
    assert parse_yaml("[1e-3, -2.5E+4, 1_000, .5, 3]") == [1e-3, -2.5e4, 1000, 0.5, 3]
    assert parse_yaml("[12e, e5, 1e]") == ["12e", "e5", "1e"]
