"""``Potential`` → the dict of DeePMD-kit's neutral model file, as its version 3.2 reads it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpa1.config.model import ModelConfig
from dpa1.errors import UserError
from dpa1.interop.options import DESCRIPTOR_KEYS, FITTING_KEYS
from dpa1.model.potential import Potential


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
    index = potential.level_index(level)
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
        "fitting": _fitting(potential, tensors, index),
    }
    return {"backend": "dpa1", "model": model, "model_def_script": _script(potential), "@variables": {}}


def _types(potential: Potential, pairs: Any) -> list[list[int]]:
    index = {symbol: k for k, symbol in enumerate(potential.elements)}
    return [[index[a], index[b]] for a, b in pairs if a in index and b in index]


def _options(potential: Potential) -> dict[str, Any]:
    """The descriptor's options under DeePMD-kit's names."""
    c = potential.config
    return {
        **{theirs: _plain(getattr(c, ours)) for ours, theirs in DESCRIPTOR_KEYS.items()},
        "sel": [c.sel],
        "tebd_input_mode": c.type_input,
        "set_davg_zero": not c.subtract_mean,
        "attn_mask": False,
        "ln_eps": c.layer_norm_eps,
        "smooth_type_embedding": c.smooth_attention,
        "precision": str(potential.dtype).removeprefix("torch."),
        "exclude_types": _types(potential, c.exclude_pairs),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _script(potential: Potential) -> dict[str, Any]:
    c = potential.config
    fitting = {theirs: _plain(getattr(c, ours)) for ours, theirs in FITTING_KEYS.items()}
    fitting |= {"type": "ener", "precision": _fitting_precision(potential)}
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
    table = _network(
        tensors, "descriptor.type_embedding.net", table_in, (c.type_embedding,), "Linear", False, precision
    )
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


def _fitting(potential: Potential, tensors: dict[str, Any], level: int) -> dict[str, Any]:
    owner = f"level_fittings.{level - 1}" if level and potential.level_fittings else "fitting"
    c, precision, count = potential.config, _fitting_precision(potential), len(potential.elements)
    width = potential.descriptor.width
    net = _network(tensors, f"{owner}.hidden", width, c.fitting, c.fitting_activation, c.fitting_timestep, precision)
    net |= {"@class": "FittingNetwork", "@version": 1, "out_dim": 1, "bias_out": True}
    del net["bias"]
    net["layers"].append(_dense(tensors, f"{owner}.output", "none", False, precision))
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
