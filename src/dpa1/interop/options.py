"""DeePMD-kit's ``model`` section in our words: one mapping for weight files and for ``input.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ase.data import chemical_symbols

from dpa1.config.base import parse
from dpa1.config.model import ModelConfig
from dpa1.errors import UserError, did_you_mean

TYPES = ("dpa1", "se_atten", "se_atten_v2")
# DeePMD-kit has two sets of defaults: of its input file and of its Python classes (files built without the former).
SCHEMA_DESCRIPTOR: dict[str, Any] = {
    "type": None, "sel": "auto", "rcut": 6.0, "rcut_smth": 0.5, "neuron": [10, 20, 40], "axis_neuron": 4, "lmax": 1,
    "activation_function": "tanh", "resnet_dt": False, "type_one_side": False, "precision": "default",
    "trainable": True, "seed": None, "exclude_types": [], "env_protection": 0.0, "attn": 128, "attn_layer": 2,
    "attn_dotr": True, "attn_mask": False, "stripped_type_embedding": None, "smooth_type_embedding": False,
    "set_davg_zero": True, "trainable_ln": True, "ln_eps": None, "tebd_dim": 8, "use_econf_tebd": False,
    "use_tebd_bias": False, "tebd_input_mode": "concat", "scaling_factor": 1.0, "normalize": True,
    "temperature": None, "concat_output_tebd": True,
}  # fmt: skip
CLASS_DESCRIPTOR: dict[str, Any] = {
    **SCHEMA_DESCRIPTOR, "neuron": [25, 50, 100], "axis_neuron": 16, "smooth_type_embedding": True,
    "ntypes": None, "type_map": None, "spin": None,
}  # fmt: skip
SCHEMA_FITTING: dict[str, Any] = {
    "type": "ener", "numb_fparam": 0, "numb_aparam": 0, "default_fparam": None, "dim_case_embd": 0,
    "neuron": [120, 120, 120], "activation_function": "tanh", "precision": "default", "resnet_dt": True,
    "trainable": True, "rcond": None, "seed": None, "atom_ener": [], "layer_name": None, "use_aparam_as_mask": False,
}  # fmt: skip
CLASS_FITTING: dict[str, Any] = {
    **SCHEMA_FITTING, "neuron": [128, 128, 128], "ntypes": None, "type_map": None, "mixed_types": True,
    "dim_descrpt": None, "embedding_width": None, "exclude_types": [], "bias_atom_e": None,
}  # fmt: skip
# Our name → DeePMD-kit's, where the values mean the same.
DESCRIPTOR_KEYS = {
    "cutoff": "rcut", "switch_start": "rcut_smth", "environment_protection": "env_protection", "embedding": "neuron",
    "axis": "axis_neuron", "type_embedding": "tebd_dim", "one_sided": "type_one_side",
    "electron_configuration": "use_econf_tebd", "type_embedding_bias": "use_tebd_bias",
    "append_type_embedding": "concat_output_tebd", "attention_layers": "attn_layer", "attention_width": "attn",
    "gate": "attn_dotr", "normalize": "normalize", "temperature": "temperature", "scaling": "scaling_factor",
    "activation": "activation_function", "timestep_residual": "resnet_dt", "layer_norm_trainable": "trainable_ln",
}  # fmt: skip
FITTING_KEYS = {"fitting": "neuron", "fitting_activation": "activation_function", "fitting_timestep": "resnet_dt"}
ALIASES = {"n_axis_neuron": "axis_neuron", "smooth_type_embdding": "smooth_type_embedding", "n_neuron": "neuron"}
# Keys of older versions, with the only value that means what is computed today.
FORMER = {"post_ln": True, "ffn": False, "head_num": 1, "num_heads": 1, "set_type_embd_zero": False}
FORMER_UNUSED = ("ffn_embed_dim",)
PRECISIONS = {
    "default": "float64",
    "float64": "float64",
    "double": "float64",
    "float32": "float32",
    "single": "float32",
}


def model_config(
    type_map: Sequence[str],
    descriptor: dict[str, Any],
    fitting: dict[str, Any],
    where: str,
    *,
    atom_exclude_types: Iterable[int] = (),
    pair_exclude_types: Iterable[Sequence[int]] = (),
) -> ModelConfig:
    """The configuration (``convention: deepmd``) of a DeePMD-kit model whose options are complete, see ``complete``.

    ``sel`` stays unset where DeePMD-kit would measure it (``"auto"``).

    Raises
    ------
    UserError
        naming ``where`` and the option that this package does not compute.
    """
    elements = element_symbols(type_map, where)
    _refuse_unsupported(descriptor, fitting, where)
    strip, smooth = descriptor["tebd_input_mode"] == "strip", descriptor["smooth_type_embedding"]
    if descriptor["stripped_type_embedding"] is not None:
        strip = descriptor["stripped_type_embedding"]
    if descriptor["type"] == "se_atten_v2":
        strip = smooth = True

    def pairs(key: str, values: Iterable[Sequence[int]]) -> list[list[str]]:
        return [_symbols(pair, elements, key, where) for pair in values or ()]

    values = {ours: descriptor[theirs] for ours, theirs in DESCRIPTOR_KEYS.items()}
    values |= {ours: fitting[theirs] for ours, theirs in FITTING_KEYS.items()}
    values |= {
        "convention": "deepmd",
        "elements": elements,
        "sel": _sel(descriptor["sel"], where),
        "type_input": "strip" if strip else "concat",
        "smooth_attention": smooth,
        "subtract_mean": not descriptor["set_davg_zero"],
        "layer_norm_eps": 1e-5 if descriptor["ln_eps"] is None else descriptor["ln_eps"],
        "exclude_pairs": pairs("exclude_types", descriptor["exclude_types"]),
        "exclude_model_pairs": pairs("pair_exclude_types", pair_exclude_types),
        "exclude_elements": _symbols(atom_exclude_types or (), elements, "atom_exclude_types", where),
        "precision": precision(descriptor["precision"], "descriptor", where),
    }
    if (fine := precision(fitting["precision"], "fitting_net", where)) != values["precision"]:
        values["fitting_precision"] = fine
    try:
        return parse(ModelConfig, values, where)
    except UserError as error:
        message = str(error)
    for section, keys in (("descriptor", DESCRIPTOR_KEYS), ("fitting_net", FITTING_KEYS)):
        for ours, theirs in keys.items():
            message = re.sub(rf"'{ours}(?=['.])", f"'{section}.{theirs}", message)
    raise UserError(message)


def complete(given: dict[str, Any], defaults: dict[str, Any], section: str, where: str) -> dict[str, Any]:
    """``given`` with aliases resolved and defaults filled in; comments (keys that begin with ``_``) dropped.

    Raises
    ------
    UserError
        for a key DeePMD-kit does not have, with the nearest one, or one of an older version with another meaning.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where}: '{section}' must hold key: value pairs")
    out = dict(defaults)
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if key.startswith("_") or key in FORMER_UNUSED:
            continue
        if key in FORMER:
            if value != FORMER[key]:
                raise UserError(
                    f"{where}: '{section}.{key}: {value}' is an option DeePMD-kit has given up; only {FORMER[key]} works"
                )
        elif name not in defaults:
            raise UserError(f"{where}: unknown key '{section}.{key}'{did_you_mean(key, [*defaults, *ALIASES])}")
        else:
            out[name] = value
    return out


def element_symbols(type_map: Sequence[str], where: str) -> list[str]:
    """The type map, checked to hold chemical symbols only."""
    if not type_map:
        raise UserError(f"{where}: has no 'type_map', so its types have no elements; add one and convert again")
    for name in type_map:
        if name not in chemical_symbols[1:]:
            raise UserError(
                f"{where}: type_map holds '{name}', which is no chemical element; models of other particles are not "
                "supported, rename the type to an element in DeePMD-kit"
            )
    return list(type_map)


def precision(name: str, section: str, where: str) -> str:
    """DeePMD-kit's name of a precision → ours."""
    if name not in PRECISIONS:
        raise UserError(f"{where}: '{section}.precision: {name}' is not supported; float64 and float32 are")
    return PRECISIONS[name]


def _refuse_unsupported(descriptor: dict[str, Any], fitting: dict[str, Any], where: str) -> None:
    kind = descriptor["type"]
    if kind not in TYPES:
        raise UserError(f"{where}: descriptor.type is '{kind}'; only DPA-1 models are supported ({', '.join(TYPES)})")
    if fitting["type"] not in ("ener", None):
        raise UserError(f"{where}: fitting_net.type is '{fitting['type']}'; only 'ener' is supported")
    refused = [
        ("descriptor.attn_mask", bool(descriptor["attn_mask"])),
        ("descriptor.lmax", descriptor["lmax"] not in (None, 1)),
        ("descriptor.spin", descriptor.get("spin") is not None),
        ("fitting_net.numb_fparam", bool(fitting["numb_fparam"])),
        ("fitting_net.numb_aparam", bool(fitting["numb_aparam"])),
        ("fitting_net.dim_case_embd", bool(fitting["dim_case_embd"])),
        ("fitting_net.layer_name", bool(fitting["layer_name"]) and any(fitting["layer_name"])),
        ("fitting_net.mixed_types: false", fitting.get("mixed_types") is False),
    ]
    for name, found in refused:
        if found:
            raise UserError(
                f"{where}: uses '{name}', which is not supported here; keep using DeePMD-kit for this model"
            )


def _sel(sel: Any, where: str) -> int | None:
    if isinstance(sel, list):
        return sum(sel)
    if isinstance(sel, int) and not isinstance(sel, bool):
        return sel
    if isinstance(sel, str) and sel.partition(":")[0] == "auto":
        return None
    raise UserError(
        f"{where}: 'descriptor.sel' must be a number, a list of numbers or 'auto[:factor]' (given: {sel!r})"
    )


def _symbols(types: Iterable[int], elements: Sequence[str], key: str, where: str) -> list[str]:
    indices = list(types)
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < len(elements):
            raise UserError(f"{where}: '{key}' names type {index}, but type_map has the types 0 to {len(elements) - 1}")
    return [elements[index] for index in indices]
