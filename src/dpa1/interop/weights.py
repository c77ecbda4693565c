"""Weights of DeePMD-kit models → ``Potential``. Both keep dense weights as (n_in, n_out), so nothing is transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dpa1.config.base import parse
from dpa1.config.model import ModelConfig
from dpa1.errors import UserError
from dpa1.interop.options import CLASS_DESCRIPTOR, CLASS_FITTING, complete, model_config
from dpa1.model.potential import Potential

# Tensors of a DeePMD-kit model that have no counterpart of their own; ``assemble`` folds them in.
STATISTICS, BIASES = ("davg", "dstd"), ("out_bias", "bias_atom_e")


def from_neutral(data: dict[str, Any], where: str) -> Potential:
    """The potential in a neutral container as ``read_neutral`` returns it.

    Raises
    ------
    UserError
        naming ``where`` and the option or part of the model that is not supported.
    """
    try:
        return _from_neutral(data["model"], where)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{where}: not laid out as DeePMD-kit writes a model ({error}); convert it again") from None


def _from_neutral(model: dict[str, Any], where: str) -> Potential:
    if model.get("type", "standard") != "standard":
        raise UserError(f"{where}: is a '{model['type']}' model; only standard energy models are supported")
    descriptor, fitting = model["descriptor"], model["fitting"]
    if descriptor.get("type") not in ("dpa1", "se_atten", "se_atten_v2"):
        raise UserError(f"{where}: descriptor.type is '{descriptor.get('type')}'; only DPA-1 models are supported")
    if descriptor.get("compress") is not None:
        raise UserError(f"{where}: is a compressed model; convert the model it was compressed from")
    if descriptor["env_mat"].get("use_exp_switch"):
        raise UserError(f"{where}: uses 'env_mat.use_exp_switch', which is not supported here")
    if set(fitting.get("exclude_types") or []) - set(model.get("atom_exclude_types") or []):
        raise UserError(f"{where}: uses 'fitting.exclude_types', which is not supported here")
    options = {key: value for key, value in descriptor.items() if key in CLASS_DESCRIPTOR}
    # Files of the first version have a bias and do not say so.
    options.setdefault("use_tebd_bias", True)
    layers = descriptor["attention_layers"]["attention_layers"]
    if layers and descriptor["type"] != "se_atten_v2":
        smooth = {layer["attention_layer"]["smooth"] for layer in layers}
        strip = options.get("tebd_input_mode") == "strip"
        if len(smooth) > 1 or (strip and smooth != {options["smooth_type_embedding"]}):
            raise UserError(f"{where}: its layers disagree about 'smooth', which is not supported here")
        options["smooth_type_embedding"] = smooth.pop()
    config = model_config(
        model["type_map"],
        complete(options, CLASS_DESCRIPTOR, "descriptor", where),
        complete({k: v for k, v in fitting.items() if k in CLASS_FITTING}, CLASS_FITTING, "fitting", where),
        where,
        atom_exclude_types=model.get("atom_exclude_types") or (),
        pair_exclude_types=model.get("pair_exclude_types") or (),
    )
    tensors = {
        **_net("descriptor.type_embedding.net", descriptor["type_embedding"]["embedding"]),
        **_net("descriptor.embedding", descriptor["embeddings"]["networks"][0]),
        "davg": descriptor["@variables"]["davg"],
        "dstd": descriptor["@variables"]["dstd"],
        "out_bias": model["@variables"]["out_bias"],
        "bias_atom_e": fitting["@variables"]["bias_atom_e"],
    }
    if config.type_input == "strip":
        tensors |= _net("descriptor.type_net", descriptor["embeddings_strip"]["networks"][0])
    for k, layer in enumerate(layers):
        prefix = f"descriptor.attention.{k}"
        attention, norm = layer["attention_layer"], layer["attn_layer_norm"]["@variables"]
        tensors |= _layer(f"{prefix}.project_in", attention["in_proj"])
        tensors |= _layer(f"{prefix}.project_out", attention["out_proj"])
        tensors |= {f"{prefix}.norm_scale": norm["w"], f"{prefix}.norm_offset": norm["b"]}
    *hidden, output = fitting["nets"]["networks"][0]["layers"]
    tensors |= _net("fitting.hidden", {"layers": hidden}) | _layer("fitting.output", output)
    return assemble(config, tensors, fitting.get("atom_ener"), where)


def _net(prefix: str, net: dict[str, Any]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for k, layer in enumerate(net["layers"]):
        w = layer["@variables"]["w"]
        if not layer["resnet"] and w.shape[1] in (w.shape[0], 2 * w.shape[0]):
            raise ValueError(f"a layer of {prefix} lacks its residual")
        tensors |= _layer(f"{prefix}.layers.{k}", layer)
    return tensors


def _layer(prefix: str, layer: dict[str, Any]) -> dict[str, Any]:
    names = {"w": "weight", "b": "bias", "idt": "timestep"}
    variables = {key: layer["@variables"].get(key) for key in names}
    return {f"{prefix}.{names[key]}": value for key, value in variables.items() if value is not None}


def assemble(
    config: ModelConfig, tensors: dict[str, Any], atom_ener: Any, where: str, level: str = "default"
) -> Potential:
    """A potential from its configuration and tensors under our names, plus DeePMD-kit's statistics and biases.

    tensors: arrays; davg, dstd (E, sel, 4); out_bias, bias_atom_e: E values in eV, added to every atom's energy.
    atom_ener: DeePMD-kit's option; when it holds any value the net's output for an all-zero input is subtracted.

    Raises
    ------
    UserError
        naming ``where`` when tensors are missing, surplus, of a wrong shape or not finite.
    """
    arrays = {name: torch.as_tensor(np.asarray(value)) for name, value in tensors.items()}
    for name, tensor in arrays.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: its weights '{name}' are NaN or infinite; use another copy of the model")
    davg, dstd = (arrays.pop(name) for name in STATISTICS)
    biases = [arrays.pop(name).double().reshape(-1) for name in BIASES]
    count = len(config.elements or ())
    if davg.shape != (count, config.sel, 4) or dstd.shape != davg.shape or any(len(b) != count for b in biases):
        raise UserError(
            f"{where}: its statistics or biases do not fit its types and sel; use another copy of the model"
        )
    if bool((davg[..., 1:] != 0).any()) or bool((dstd[..., 1:] != dstd[..., 1:2]).any()):
        raise UserError(f"{where}: its input statistics depend on direction, which is not supported here")
    by_slot = bool((davg != davg[:, :1]).any()) or bool((dstd != dstd[:, :1]).any())
    update = {"slot_statistics": by_slot, "subtract_mean": config.subtract_mean or bool((davg != 0).any())}
    config = parse(ModelConfig, {**config.model_dump(), **update}, where)
    potential = Potential(config, [level])
    arrays["descriptor.mean"] = davg[..., 0] if by_slot else davg[:, 0, 0]
    arrays["descriptor.scale"] = dstd[..., :2] if by_slot else dstd[:, 0, :2]
    arrays["energy_bias"] = potential.energy_bias
    try:
        potential.load_state_dict(arrays)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"{where}: its weights do not fit its options ({detail}); use another copy of it") from None
    bias = biases[0] + biases[1]
    if any(value is not None for value in atom_ener or ()):
        with torch.no_grad():
            empty = torch.zeros(1, potential.descriptor.width, dtype=potential.fitting.output.weight.dtype)
            bias = bias - potential.fitting(empty).double()
    potential.energy_bias[0] = bias
    return potential.eval()
