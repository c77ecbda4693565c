"""DeePMD-kit's checkpoints and frozen models: the same numbers, and nothing in them is executed."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from dpa1.errors import UserError
from dpa1.interop.load import load_potential
from tests.golden.common import assert_same, computed
from tests.interop.common import FILES, numbers


@pytest.mark.parametrize(
    ("name", "file", "branch"),
    [
        ("checkpoint", "checkpoint.pt", None),
        ("frozen", "frozen.pth", None),
        ("water", "multitask.pt", "water"),
        ("ice", "multitask.pt", "ice"),
    ],
)
def test_same_numbers_as_deepmd_kit(name: str, file: str, branch: str | None) -> None:
    potential = load_potential(FILES / file, branch)
    frame, expected = numbers(name)
    assert_same(computed(potential, frame), expected, 1e-12)
    assert potential.levels == (branch or "default",)
    assert potential.info["imported_from"]["file"] == file


@pytest.mark.parametrize(("branch", "words"), [(None, "water, ice"), ("watr", "did you mean 'water'")])
def test_a_branch_of_several_must_be_named(branch: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_potential(FILES / "multitask.pt", branch)


@pytest.mark.parametrize("file", ["checkpoint.pt", "frozen.pth"])
def test_a_single_model_has_no_branches(file: str) -> None:
    with pytest.raises(UserError, match="leave --branch out"):
        load_potential(FILES / file, "water")


def changed(tmp_path: Path, change: object) -> Path:
    """The checkpoint with something changed."""
    content = torch.load(FILES / "checkpoint.pt", weights_only=True)
    change(content["model"], content["model"]["_extra_state"]["model_params"])
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("descriptor", "lmax", 2, "descriptor.lmax"),
        ("descriptor", "attn_mask", True, "descriptor.attn_mask"),
        ("descriptor", "type", "dpa2", "only DPA-1"),
        ("descriptor", "precision", "bfloat16", "precision"),
        ("descriptor", "exclude_types", [[0, 7]], "type 7"),
        ("descriptor", "new_option", 1, "unknown key 'descriptor.new_option'"),
        ("fitting_net", "numb_fparam", 2, "numb_fparam"),
        ("fitting_net", "numb_aparam", 1, "numb_aparam"),
        ("fitting_net", "dim_case_embd", 3, "dim_case_embd"),
        ("fitting_net", "type", "dipole", "only 'ener'"),
        (None, "spin", {"use_spin": [True, False]}, "spin"),
        (None, "type", "linear_ener", "standard energy models"),
        (None, "type_map", ["O", "H_spin"], "no chemical element"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, section: str, key: str, value: object, words: str) -> None:
    def change(_: dict, params: dict) -> None:
        (params[section] if section else params)[key] = value

    with pytest.raises(UserError, match=words) as error:
        load_potential(changed(tmp_path, change))
    assert "changed.pt" in str(error.value)
    assert "\n" not in str(error.value)


def test_compressed_and_incomplete_models_are_refused(tmp_path: Path) -> None:
    prefix = "model.Default.atomic_model.descriptor.se_atten."
    with pytest.raises(UserError, match="compressed"):
        load_potential(changed(tmp_path, lambda m, _: m.update({prefix + "type_embd_data": torch.ones(3)})))
    with pytest.raises(UserError, match="do not fit"):
        load_potential(changed(tmp_path, lambda m, _: m.pop(prefix + "filter_layers.networks.0.layers.1.matrix")))
    with pytest.raises(UserError, match="NaN or infinite"):
        load_potential(changed(tmp_path, lambda m, _: m[prefix + "mean"].fill_(float("nan"))))


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_never_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("plain.dp", "plain.yaml", "plain.dpa1", "plain.pth"):
        Path(name).write_bytes(Path("plain.pt").read_bytes())
    torch.save({"model": Bomb()}, "archive.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(FILES / "frozen.pth") as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = pickle.dumps(Bomb()) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, data)
    Path("frozen.pth").write_bytes(buffer.getvalue())
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=r"pickle|could run code"):
            load_potential(file)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("file", ["checkpoint.pt", "frozen.pth"])
def test_damage_is_noticed(tmp_path: Path, file: str) -> None:
    whole = (FILES / file).read_bytes()
    broken = tmp_path / file
    for cut in (0, 10, len(whole) // 2, len(whole) - 30):
        broken.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=file):
            load_potential(broken)
    frame, expected = numbers(Path(file).stem)
    for position in range(7, len(whole), len(whole) // 120):
        broken.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            potential = load_potential(broken)
        except UserError:
            continue
        # Padding of the archive: the model is what it was.
        assert_same(computed(potential, frame), expected, 1e-12)
