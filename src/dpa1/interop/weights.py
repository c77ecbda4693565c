"""Weights of DeePMD-kit models ⇄ ``Potential``. Both keep dense weights as (n_in, n_out), so nothing is transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        raise UserError(f"{where}: its statistics or biases do not fit its types and sel; use another copy of the model")
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


def to_neutral(potential: Potential, where: str, level: str | None = None) -> dict[str, Any]:
    """The neutral container of one level of a potential (``convention: deepmd``), as DeePMD-kit 3.2 reads it.

    Raises
    ------
    UserError
        for ``convention: smooth``, whose formulas DeePMD-kit does not have, or an unnamed level of several.
    """
    config = potential.config
    if config.convention != "deepmd":
        raise UserError(
            f"{where}: has convention: smooth, whose attention and normalisation DeePMD-kit does not have, so it cannot "
            "compute this model; train with convention: deepmd for that"
        )
    index = potential._level(level)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in potential.state_dict().items()}
    count, sel = len(potential.elements), config.sel
    bias = tensors["energy_bias"][index].reshape(1, count, 1)
    model = {
        "@class": "Model",
        "@version": 2,
        "type": "standard",
        "type_map": list(potential.elements),
        "atom_exclude_types": [potential.elements.index(s) for s in config.exclude_elements],
        "pair_exclude_types": _types(potential, config.exclude_model_pairs),
        "rcond": None,
        "preset_out_bias": None,
        "@variables": {"out_bias": bias, "out_std": np.ones((1, count, 1))},
        "descriptor": _descriptor(potential, tensors, int(sel or 0)),
        "fitting": _fitting(potential, tensors),
    }
    return {"backend": "dpa1", "model": model, "model_def_script": _script(potential), "@variables": {}}


def _types(potential: Potential, pairs: Any) -> list[list[int]]:
    index = {symbol: k for k, symbol in enumerate(potential.elements)}
    return [[index[a], index[b]] for a, b in pairs if a in index and b in index]


def _options(potential: Potential) -> dict[str, Any]:
    """The descriptor's options under DeePMD-kit's names."""
    c = potential.config
    return {
        "rcut": c.cutoff, "rcut_smth": c.switch_start, "sel": [c.sel], "neuron": list(c.embedding),
        "axis_neuron": c.axis, "tebd_dim": c.type_embedding, "tebd_input_mode": c.type_input,
        "set_davg_zero": not c.subtract_mean, "attn": c.attention_width, "attn_layer": c.attention_layers,
        "attn_dotr": c.gate, "attn_mask": False, "activation_function": c.activation,
        "resnet_dt": c.timestep_residual, "scaling_factor": c.scaling, "normalize": c.normalize,
        "temperature": c.temperature, "trainable_ln": c.layer_norm_trainable, "ln_eps": c.layer_norm_eps,
        "smooth_type_embedding": c.smooth_attention, "type_one_side": c.one_sided,
        "concat_output_tebd": c.append_type_embedding, "use_econf_tebd": c.electron_configuration,
        "use_tebd_bias": c.type_embedding_bias, "precision": str(potential.dtype).removeprefix("torch."),
        "exclude_types": _types(potential, c.exclude_pairs), "env_protection": c.environment_protection,
    }  # fmt: skip


def _script(potential: Potential) -> dict[str, Any]:
    c = potential.config
    fitting = {"type": "ener", "neuron": list(c.fitting), "activation_function": c.fitting_activation,
               "resnet_dt": c.fitting_timestep, "precision": _fitting_precision(potential)}  # fmt: skip
    return {
        "type_map": list(potential.elements),
        "descriptor": {"type": "dpa1", **_options(potential), "sel": c.sel},
        "fitting_net": fitting,
        "atom_exclude_types": [potential.elements.index(s) for s in c.exclude_elements],
        "pair_exclude_types": _types(potential, c.exclude_model_pairs),
    }


def _fitting_precision(potential: Potential) -> str:
    return str(potential.fitting.output.weight.dtype).removeprefix("torch.")


def _descriptor(potential: Potential, tensors: dict[str, Any], sel: int) -> dict[str, Any]:
    c, symbols, options = potential.config, list(potential.elements), _options(potential)
    precision, count = options["precision"], len(potential.elements)

    def collection(prefix: str, n_in: int) -> dict[str, Any]:
        net = _network(tensors, prefix, n_in, c.embedding, c.activation, c.timestep_residual, precision)
        return {"@class": "NetworkCollection", "@version": 1, "ndim": 0, "ntypes": count,
                "network_type": "embedding_network", "networks": [net]}  # fmt: skip

    types_in = c.type_embedding * (1 if c.one_sided else 2)
    strip = c.type_input == "strip"
    davg, dstd = np.zeros((count, sel, 4)), np.empty((count, sel, 4))
    mean, scale = tensors["descriptor.mean"], tensors["descriptor.scale"]
    davg[..., 0] = mean if c.slot_statistics else mean[:, None]
    dstd[...] = (scale if c.slot_statistics else scale[:, None])[..., [0, 1, 1, 1]]
    table_in = tensors["descriptor.type_embedding.net.layers.0.weight"].shape[0]
    table = _network(tensors, "descriptor.type_embedding.net", table_in, (c.type_embedding,), "Linear", False, precision)
    shared = {"precision": precision, "trainable_ln": c.layer_norm_trainable, "ln_eps": c.layer_norm_eps}
    out = {
        "@class": "Descriptor", "type": "dpa1", "@version": 2, **options, "ntypes": count, "type_map": symbols,
        "trainable": True, "spin": None,
        "env_mat": {"rcut": c.cutoff, "rcut_smth": c.switch_start, "protection": c.environment_protection,
                    "use_exp_switch": False},
        "embeddings": collection("descriptor.embedding", 1 if strip else 1 + types_in),
        "type_embedding": {
            "@class": "TypeEmbedNet", "@version": 2, "ntypes": count, "neuron": [c.type_embedding], "resnet_dt": False,
            "precision": precision, "activation_function": "Linear", "trainable": True, "padding": True,
            "use_econf_tebd": c.electron_configuration, "use_tebd_bias": c.type_embedding_bias, "type_map": symbols,
            "embedding": table,
        },
        "attention_layers": {
            "@class": "NeighborGatedAttention", "@version": 1, "layer_num": c.attention_layers,
            **_attention_options(c, sel), **shared,
            "attention_layers": [_attention(tensors, k, c, sel, shared) for k in range(c.attention_layers)],
        },
        "@variables": {"davg": davg, "dstd": dstd},
    }  # fmt: skip
    if strip:
        out["embeddings_strip"] = collection("descriptor.type_net", types_in)
    return out


def _attention_options(c: ModelConfig, sel: int) -> dict[str, Any]:
    return {"nnei": sel, "embed_dim": c.embedding[-1], "hidden_dim": c.attention_width, "dotr": c.gate,
            "do_mask": False, "scaling_factor": c.scaling, "normalize": c.normalize, "temperature": c.temperature}  # fmt: skip


def _attention(tensors: dict[str, Any], k: int, c: ModelConfig, sel: int, shared: dict[str, Any]) -> dict[str, Any]:
    options, precision, prefix = _attention_options(c, sel), shared["precision"], f"descriptor.attention.{k}"
    norm = {"w": tensors[f"{prefix}.norm_scale"], "b": tensors[f"{prefix}.norm_offset"]}
    return {
        **options,
        **shared,
        "attention_layer": {
            **options, "num_heads": 1, "bias": True, "smooth": c.smooth_attention, "precision": precision,
            "in_proj": _dense(tensors, f"{prefix}.project_in", "none", False, precision),
            "out_proj": _dense(tensors, f"{prefix}.project_out", "none", False, precision),
        },
        "attn_layer_norm": {
            "@class": "LayerNorm", "@version": 1, "eps": c.layer_norm_eps, "trainable": c.layer_norm_trainable,
            "precision": precision, "@variables": norm,
        },
    }  # fmt: skip


def _network(
    tensors: dict[str, Any], prefix: str, n_in: int, widths: Any, activation: str, timestep: bool, precision: str
) -> dict[str, Any]:
    layers = [_dense(tensors, f"{prefix}.layers.{k}", activation, True, precision) for k in range(len(widths))]
    return {"@class": "EmbeddingNetwork", "@version": 2, "in_dim": n_in, "neuron": list(widths),
            "activation_function": activation, "resnet_dt": timestep, "bias": f"{prefix}.layers.0.bias" in tensors,
            "precision": precision, "layers": layers}  # fmt: skip


def _dense(tensors: dict[str, Any], prefix: str, activation: str, residual: bool, precision: str) -> dict[str, Any]:
    w, b, idt = (tensors.get(f"{prefix}.{name}") for name in ("weight", "bias", "timestep"))
    return {"@class": "Layer", "@version": 2, "bias": b is not None, "use_timestep": idt is not None,
            "activation_function": activation, "resnet": residual, "precision": precision, "trainable": True,
            "@variables": {"w": w, "b": b, "idt": idt}}  # fmt: skip


def _fitting(potential: Potential, tensors: dict[str, Any]) -> dict[str, Any]:
    c, precision, count = potential.config, _fitting_precision(potential), len(potential.elements)
    width = potential.descriptor.width
    net = _network(tensors, "fitting.hidden", width, c.fitting, c.fitting_activation, c.fitting_timestep, precision)
    net |= {"@class": "FittingNetwork", "@version": 1, "out_dim": 1, "bias_out": True}
    del net["bias"]
    net["layers"].append(_dense(tensors, "fitting.output", "none", False, precision))
    return {
        "@class": "Fitting", "type": "ener", "@version": 4, "var_name": "energy", "ntypes": count,
        "dim_descrpt": width, "dim_out": 1, "neuron": list(c.fitting), "resnet_dt": c.fitting_timestep,
        "numb_fparam": 0, "numb_aparam": 0, "dim_case_embd": 0, "default_fparam": None,
        "activation_function": c.fitting_activation, "precision": precision, "mixed_types": True,
        "nets": {"@class": "NetworkCollection", "@version": 1, "ndim": 0, "ntypes": count,
                 "network_type": "fitting_network", "networks": [net]},
        "rcond": None, "exclude_types": [], "atom_ener": None, "type_map": list(potential.elements),
        "tot_ener_zero": False, "trainable": [True] * (len(c.fitting) + 1), "layer_name": None,
        "use_aparam_as_mask": False, "spin": None,
        "@variables": {"bias_atom_e": np.zeros((count, 1)), "case_embd": None, "fparam_avg": None,
                       "fparam_inv_std": None, "aparam_avg": None, "aparam_inv_std": None},
    }  # fmt: skip
