"""DeePMD-kit's PyTorch files: checkpoints (``.pt``) and frozen TorchScript models (``.pth``).

No code from a file runs. Checkpoints go through ``torch.load(weights_only=True)``. A TorchScript archive is a zip with
Python-like source (never read here) and a pickle of the module's attributes; that pickle goes through an unpickler
that knows tensors, lists and dicts, turns every TorchScript object into an inert record, and refuses any other name.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa1.errors import UserError, did_you_mean
from dpa1.interop.options import CLASS_DESCRIPTOR, CLASS_FITTING, complete, model_config
from dpa1.interop.weights import assemble
from dpa1.model.potential import Potential

# DeePMD-kit's names of tensors → ours; `J` stands for a layer's number.
_NAMES = [
    (r"descriptor\.se_atten\.mean", "davg"),
    (r"descriptor\.se_atten\.stddev", "dstd"),
    (r"out_bias", "out_bias"),
    (r"fitting_net\.bias_atom_e", "bias_atom_e"),
    (r"descriptor\.type_embedding\.embedding\.embedding_net\.layers\.(\d+)\.(\w+)", "descriptor.type_embedding.net.layers"),
    (r"descriptor\.se_atten\.filter_layers\.networks\.0\.layers\.(\d+)\.(\w+)", "descriptor.embedding.layers"),
    (r"descriptor\.se_atten\.filter_layers_strip\.networks\.0\.layers\.(\d+)\.(\w+)", "descriptor.type_net.layers"),
    (r"fitting_net\.filter_layers\.networks\.0\.layers\.(\d+)\.(\w+)", "fitting.hidden.layers"),
]  # fmt: skip
_ATTENTION = re.compile(
    r"descriptor\.se_atten\.dpa1_attention\.attention_layers\.(\d+)\."
    r"(?:attention_layer\.(in_proj|out_proj)|attn_layer_norm)\.(matrix|bias)"
)
_PARTS = {"matrix": "weight", "bias": "bias", "idt": "timestep"}
# Copies, and values that do not enter an energy.
_UNUSED = re.compile(r"_networks\.|min_nbor_dist|out_std|case_embd|compress_|type_embd_data")
_MODEL_REFUSED = ("spin", "use_srtab", "modifier", "compress", "type_embedding")
_PICKLE_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "LongStorage": np.int64, "IntStorage": np.int32,
    "BoolStorage": np.bool_, "HalfStorage": np.float16, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8,
}  # fmt: skip


def read_torch(path: str | Path, branch: str | None = None) -> Potential:
    """The potential in a ``.pt`` or ``.pth`` file, told apart by content; ``branch`` picks one of a multi-task file.

    Raises
    ------
    UserError
        when the file is damaged, holds no DPA-1 model or an unsupported option, or when the branch must be named.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            frozen = any(name.endswith("/constants.pkl") for name in archive.namelist())
            # Contents carry checksums, which torch does not look at.
            broken = archive.testzip()
    except Exception:  # a damaged archive fails in many ways
        broken = "archive"
    if broken is not None:
        raise _damaged(path)
    params, tensors, branch = _frozen(path, branch) if frozen else _checkpoint(path, branch)
    try:
        return _build(params, tensors, str(path), branch)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not laid out as DeePMD-kit writes a model ({error})") from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: truncated or damaged; copy the file again or use another model")


def _checkpoint(path: Path, branch: str | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects other than tensors; it was not opened because it could run code"
        ) from None
    except Exception:
        raise _damaged(path) from None
    content = content.get("model", content) if isinstance(content, Mapping) else {}
    extra = content.get("_extra_state") if isinstance(content, Mapping) else None
    if not isinstance(extra, Mapping) or not isinstance(extra.get("model_params"), Mapping):
        raise UserError(f"{path}: a torch file without a DeePMD-kit model (no '_extra_state.model_params')")
    params = extra["model_params"]
    if "model_dict" in params:
        branches = list(params["model_dict"])
        if branch not in branches:
            asked = f"has no branch '{branch}'" if branch else "is a multi-task file"
            raise UserError(
                f"{path}: {asked}{did_you_mean(branch or '', branches)}; it holds {', '.join(branches)}: take one out with"
                f"  dpa1 convert {path.name} model.dpa1 --branch {branches[0]}"
            )
        params, key = params["model_dict"][branch], branch
    elif branch not in (None, "Default"):
        raise UserError(f"{path}: holds a single model, so there is no branch '{branch}'; leave --branch out")
    else:
        key = "Default"
    prefix = f"model.{key}."
    tensors = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    return dict(params), tensors, "default" if key == "Default" else str(key)


def _frozen(path: Path, branch: str | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    if branch is not None:
        raise UserError(f"{path}: a frozen model holds a single branch; leave --branch out")
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            module = _Inert(archive, root).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}; it was not opened because it could run code") from None
    except Exception:
        raise _damaged(path) from None
    script = getattr(module, "attributes", {}).get("model_def_script")
    try:
        params = json.loads(str(script))
    except ValueError:
        raise UserError(f"{path}: a TorchScript file without a DeePMD-kit model (no 'model_def_script')") from None
    tensors: dict[str, Any] = {}
    _collect(module, "", tensors)
    return params, tensors, "default"


class _Record:
    """A TorchScript object as plain data."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


class _Inert(pickle.Unpickler):
    """Reads the attribute tree of a TorchScript archive; nothing it can name executes anything."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Record
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name in _PICKLE_LISTS:
            return _first
        raise pickle.UnpicklingError(f"refers to the Python object {module}.{name}")

    def persistent_load(self, key: Any) -> np.ndarray:
        _, dtype, name, _, count = key
        return np.frombuffer(self.archive.read(f"{self.root}data/{name}"), dtype=dtype)[:count]


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if min(offset, *stride, 0) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its storage")
    index = np.array(offset)
    for n, s in zip(size, stride, strict=True):
        index = index[..., None] + np.arange(n) * s
    return storage[index]


def _collect(record: _Record, prefix: str, tensors: dict[str, Any], depth: int = 0) -> None:
    """Parameters and buffers of the module tree under their dotted names."""
    for name, value in getattr(record, "attributes", {}).items():
        if isinstance(value, np.ndarray):
            tensors[prefix + name] = value
        elif isinstance(value, _Record) and depth < 30:
            _collect(value, f"{prefix}{name}.", tensors, depth + 1)


def _build(params: dict[str, Any], tensors: dict[str, Any], where: str, level: str) -> Potential:
    kind = params.get("type", "standard")
    bridging = str(params.get("bridging_method") or "none").lower()
    if kind != "standard" or "descriptor" not in params or bridging != "none":
        raise UserError(f"{where}: is a '{kind}' model; only standard energy models are supported")
    for key in _MODEL_REFUSED:
        if params.get(key):
            raise UserError(f"{where}: uses 'model.{key}', which is not supported here; keep using DeePMD-kit for it")
    descriptor = complete(params["descriptor"], CLASS_DESCRIPTOR, "descriptor", where)
    fitting = complete(params.get("fitting_net", {}), CLASS_FITTING, "fitting_net", where)
    config = model_config(
        params["type_map"],
        descriptor,
        fitting,
        where,
        atom_exclude_types=params.get("atom_exclude_types") or (),
        pair_exclude_types=params.get("pair_exclude_types") or (),
    )
    if config.sel is None:
        raise UserError(
            f"{where}: its sel is 'auto', so its size is unknown; convert it with 'dp convert-backend' first"
        )
    renamed: dict[str, Any] = {}
    compressed = [name for name, value in tensors.items() if "compress_data" in name or "type_embd_data" in name]
    if any(np.asarray(tensors[name]).size for name in compressed):
        raise UserError(f"{where}: is a compressed model; convert the model it was compressed from")
    for name, value in tensors.items():
        ours = _our_name(name.removeprefix("atomic_model."), len(config.fitting))
        if ours is not None:
            renamed[ours] = value
        elif not _UNUSED.search(name) and name.startswith("atomic_model.") and _is_weight(name):
            raise UserError(f"{where}: holds the weights '{name}', which no DPA-1 energy model here has")
    return assemble(config, renamed, fitting["atom_ener"], where, level)


def _is_weight(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in (*_PARTS, "adam_degree_gain_raw", "case_embd")


def _our_name(name: str, hidden: int) -> str | None:
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        if not match.groups():
            return ours
        layer, part = int(match[1]), _PARTS.get(match[2])
        if part is None:
            return None
        if ours == "fitting.hidden.layers" and layer == hidden:
            return f"fitting.output.{part}"
        return f"{ours}.{layer}.{part}"
    match = _ATTENTION.fullmatch(name)
    if match is None:
        return None
    prefix, projection = f"descriptor.attention.{match[1]}", match[2]
    if projection is None:
        return f"{prefix}.norm_{'scale' if match[3] == 'matrix' else 'offset'}"
    return f"{prefix}.project_{projection.removesuffix('_proj')}.{_PARTS[match[3]]}"
