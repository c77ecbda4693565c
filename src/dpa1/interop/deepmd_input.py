"""A DeePMD-kit ``input.json`` of a DPA-1 energy model as a run configuration. The model is computed as DeePMD-kit does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpa1.errors import UserError, did_you_mean
from dpa1.interop.deepmd_systems import batch_budget, located, measured_sel, weighted_sources
from dpa1.interop.options import (
    FORMER,
    FORMER_UNUSED,
    SCHEMA_DESCRIPTOR,
    SCHEMA_FITTING,
    TYPES,
    complete,
    element_symbols,
    model_config,
)

# Every key of a section DeePMD-kit knows, with its default; None where it has none.
MODEL: dict[str, Any] = {
    "type": "standard", "type_map": None, "descriptor": None, "fitting_net": {}, "data_stat_nbatch": 10,
    "data_stat_protect": 0.01, "data_bias_nsample": 10, "use_srtab": None, "smin_alpha": None, "sw_rmin": None,
    "sw_rmax": None, "pair_exclude_types": [], "atom_exclude_types": [], "preset_out_bias": None,
    "srtab_add_bias": True, "type_embedding": None, "modifier": None, "compress": None, "spin": None,
    "finetune_head": None, "bridging_method": None, "bridging_r_inner": None, "bridging_r_outer": None, "info": None,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "training_data": None, "validation_data": None, "numb_steps": None, "numb_epoch": None, "seed": None,
    "disp_freq": 1000, "save_freq": 1000, "max_ckpt_keep": 5, "enable_ema": False, "ema_decay": 0.999,
    "change_bias_after_training": False, "tensorboard": False, "gradient_max_norm": None, "opt_type": None,
}  # fmt: skip
TRAINING_UNUSED = (
    "stat_file", "stat_file_mode", "mixed_precision", "disp_file", "save_dir", "save_ckpt", "ckpt_keep_ratio",
    "ema_ckpt_keep", "disp_training", "time_training", "disp_avg", "profiling", "profiling_file", "enable_profiler",
    "tensorboard_log_dir", "tensorboard_freq", "acc_freq", "zero_stage", "neighbor_graph_method", "enable_compile",
    "enable_tf32",
)  # fmt: skip
DATA: dict[str, Any] = {
    "systems": None, "rglob_patterns": None, "batch_size": "auto", "auto_prob": "prob_sys_size", "sys_probs": None,
    "min_pair_dist": 0.0, "numb_btch": None, "set_prefix": "set",
}  # fmt: skip
RATE: dict[str, Any] = {
    "type": "exp", "start_lr": None, "stop_lr": None, "stop_lr_ratio": None, "warmup_steps": 0, "warmup_ratio": None,
    "warmup_start_factor": 0.0, "scale_by_worker": None, "decay_steps": 5000, "decay_rate": None, "smooth": False,
    "decay_phase_ratio": 0.1, "decay_type": "inverse_linear",
}  # fmt: skip
LOSS: dict[str, Any] = {
    "type": "ener", "start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0,
    "start_pref_v": 0.0, "limit_pref_v": 0.0, "use_huber": False, "loss_func": "mse", "f_use_norm": False,
    "huber_delta": 0.01, "intensive_ener_virial": False, "relative_f": None, "enable_atom_ener_coeff": False,
    "use_default_pf": False, "numb_generalized_coord": 0,
    **{f"{end}_pref_{term}": 0.0 for end in ("start", "limit") for term in ("h", "ae", "pf", "gf")},
}  # fmt: skip
OPTIMIZER: dict[str, Any] = {"type": "Adam", "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": None}
VALIDATING: dict[str, Any] = {"full_validation": False, "validation_freq": 5000, "validation_metric": "E:MAE"}
VALIDATING_UNUSED = (
    "ema_full_validation", "save_best", "save_best_dir", "max_best_ckpt", "full_val_file", "full_val_start",
    "compiled_infer", "tf32_infer", "amp_infer",
)  # fmt: skip
TOP = ("model", "learning_rate", "loss", "optimizer", "training", "validating", "nvnmd")
RENAMED = {
    "stop_batch": "numb_steps", "num_step": "numb_steps", "num_steps": "numb_steps", "numb_step": "numb_steps",
    "num_epochs": "numb_epoch", "num_epoch": "numb_epoch", "numb_epochs": "numb_epoch", "sys_weights": "sys_probs",
    "auto_prob_style": "auto_prob", "numb_batch": "numb_btch",
}  # fmt: skip
METRICS = {"E": "energy", "F": "force", "V": "virial"}


def is_deepmd_input(values: Any) -> bool:
    """Whether the content of a configuration file is DeePMD-kit's rather than ours."""
    model = values.get("model") if isinstance(values, dict) else None
    return isinstance(model, dict) and ("descriptor" in model or "model_dict" in model)


def translate(values: dict[str, Any], path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """(run configuration as plain values, notes for the reader) of an ``input.json`` read from ``path``.

    Data paths are looked up in the current folder, as DeePMD-kit does, then beside the file. ``sel: auto`` and
    probabilities of systems need a pass over the data.

    Raises
    ------
    UserError
        naming the file and the key: unknown (with the nearest one), or one that changes the physics and that is not
        supported here.
    """
    try:
        return _Translation(values, Path(path)).run()
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: a value is not what DeePMD-kit expects there ({error}); correct it") from None


class _Translation:
    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path, self.where = values, path, str(path)
        self.unused: list[str] = []
        self.notes: list[str] = []

    def run(self) -> tuple[dict[str, Any], list[str]]:
        top = {key: value for key, value in self.values.items() if not key.startswith("_")}
        for key in top:
            if key in ("loss_dict",):
                self._refuse("loss_dict (multi-task)")
            if key not in TOP:
                raise UserError(f"{self.where}: unknown key '{key}'{did_you_mean(key, TOP)}")
        if (top.get("nvnmd") or {}).get("enable"):
            self._refuse("nvnmd")
        model = self._section(top.get("model"), MODEL, "model", refuse=("model_dict", "shared_dict"))
        training = self._section(
            top.get("training"),
            TRAINING,
            "training",
            TRAINING_UNUSED,
            refuse=("data_dict", "model_prob", "num_epoch_dict"),
        )
        data = self._data(training, "training_data")
        config, bias = self._model(model, data)
        out_training = self._training(training, data, model, top)
        valid = None
        if training["validation_data"] is not None:
            validation = self._data(training, "validation_data")
            valid = weighted_sources(validation, self.where, model["type_map"])
        out: dict[str, Any] = {
            "data": {
                "train": weighted_sources(data, self.where, model["type_map"]),
                "valid": valid,
            },
            "model": config,
            "training": {**out_training, "energy_bias": bias},
            "loss": self._loss(top.get("loss")),
            "seed": 1 if training["seed"] is None else training["seed"],
        }
        if model["type_map"]:
            out["data"]["type_map"] = model["type_map"]
        if training["tensorboard"]:
            out["loggers"] = ["tensorboard"]
        if self.unused:
            self.notes.append("keys with no meaning here, ignored: " + ", ".join(sorted(set(self.unused))))
        return out, self.notes

    def _refuse(self, key: str, remedy: str = "train this model with DeePMD-kit") -> None:
        raise UserError(f"{self.where}: '{key}' is not supported here; {remedy}")

    def _section(
        self, given: Any, known: dict[str, Any], name: str, unused: tuple[str, ...] = (), refuse: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise UserError(f"{self.where}: needs a section '{name}' with key: value pairs")
        out = dict(known)
        for key, value in given.items():
            target = RENAMED.get(key, key)
            if key.startswith("_"):
                continue
            if key in refuse:
                self._refuse(f"{name}.{key} (multi-task)", "keep one model in the file")
            if key in unused:
                self.unused.append(f"{name}.{key}")
            elif target in known:
                out[target] = value
            else:
                names = [*known, *unused]
                raise UserError(f"{self.where}: unknown key '{name}.{key}'{did_you_mean(key, names)}")
        return out

    def _data(self, training: dict[str, Any], name: str) -> dict[str, Any]:
        data = self._section(training[name], DATA, f"training.{name}")
        if data["min_pair_dist"]:
            self._refuse(
                f"training.{name}.min_pair_dist", "remove frames with close atoms (dpa1 data check names them)"
            )
        if data["set_prefix"] != "set":
            self._refuse(f"training.{name}.set_prefix: {data['set_prefix']}", "name the folders set.*")
        if data["numb_btch"] is not None:
            self.unused.append(f"training.{name}.numb_btch")
        data["systems"] = located(data["systems"], data["rglob_patterns"], self.path.parent, self.where)
        return data

    def _model(self, model: dict[str, Any], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        for key in ("use_srtab", "type_embedding", "modifier", "compress", "spin", "finetune_head"):
            if model[key]:
                self._refuse(f"model.{key}")
        if str(model["bridging_method"] or "none").lower() != "none":
            self._refuse("model.bridging_method")
        if model["type"] not in (None, "standard"):
            self._refuse(f"model.type: {model['type']}")
        given = model["descriptor"]
        kind = given.get("type") if isinstance(given, dict) else None
        if kind not in TYPES:
            raise UserError(f"{self.where}: model.descriptor.type is '{kind}'; only {', '.join(TYPES)} are supported")
        defaults = dict(SCHEMA_DESCRIPTOR)
        if kind == "se_atten_v2":
            defaults["set_davg_zero"] = False
            for key in ("tebd_input_mode", "smooth_type_embedding", "stripped_type_embedding"):
                if key in given:
                    raise UserError(f"{self.where}: 'model.descriptor.{key}' is fixed by se_atten_v2; drop the key")
        descriptor = complete(given, defaults, "model.descriptor", self.where)
        fitting = complete(model["fitting_net"], SCHEMA_FITTING, "model.fitting_net", self.where)
        if descriptor["trainable"] is not True:
            self._refuse("model.descriptor.trainable: false")
        if fitting["trainable"] is not True and not (
            isinstance(fitting["trainable"], list) and all(fitting["trainable"])
        ):
            self._refuse("model.fitting_net.trainable: false")
        if any(value is not None for value in fitting["atom_ener"] or []):
            self._refuse("model.fitting_net.atom_ener", "give the energies as model.preset_out_bias")
        for section, values in (("descriptor", given), ("fitting_net", model["fitting_net"])):
            unused = ("seed", "rcond", *FORMER, *FORMER_UNUSED)
            self.unused += [f"model.{section}.{key}" for key in unused if values.get(key) is not None]
        self.unused += [f"model.{key}" for key in ("data_bias_nsample", "info") if key in self.values["model"]]
        if not model["type_map"]:
            raise UserError(f"{self.where}: needs 'model.type_map', the elements of the model")
        symbols = element_symbols(model["type_map"], self.where)
        config = model_config(
            symbols, descriptor, fitting, self.where,
            atom_exclude_types=model["atom_exclude_types"], pair_exclude_types=model["pair_exclude_types"],
        )  # fmt: skip
        values = config.model_dump(mode="json", exclude_none=True)
        if config.sel is None:
            values["sel"] = measured_sel(data["systems"], config.cutoff, descriptor["sel"], symbols, self.where)
            self.notes.append(f"sel: {values['sel']} (from the training data, as '{descriptor['sel']}' asks)")
        return values, self._preset(model["preset_out_bias"], symbols)

    def _preset(self, preset: Any, symbols: list[str]) -> dict[str, float]:
        values = (preset or {}).get("energy") or []
        if isinstance(values, dict):
            return {symbol: float(value) for symbol, value in values.items() if value is not None}
        if values and len(values) != len(symbols):
            raise UserError(
                f"{self.where}: 'model.preset_out_bias.energy' needs one value or null per type of type_map"
            )
        flat = [value[0] if isinstance(value, list) else value for value in values]
        return {symbol: float(value) for symbol, value in zip(symbols, flat, strict=False) if value is not None}

    def _training(
        self, training: dict[str, Any], data: dict[str, Any], model: dict[str, Any], top: dict[str, Any]
    ) -> dict[str, Any]:
        steps, epochs = training["numb_steps"], training["numb_epoch"]
        if (steps is None) == (epochs is None):
            raise UserError(f"{self.where}: give one of 'training.numb_steps' and 'training.numb_epoch'")
        budget, note = batch_budget(data, self.where)
        if note:
            self.notes.append(note)
        frames = budget.get("batch_frames", 1) * int(model["data_stat_nbatch"]) * len(data["systems"])
        out = {
            **({"steps": steps} if steps is not None else {"epochs": epochs}),
            **budget,
            **self._rate(top.get("learning_rate"), steps),
            "optimizer": self._optimizer(top.get("optimizer"), training["opt_type"]),
            "clip_factor": None,
            "clip_norm": training["gradient_max_norm"] or None,
            "ema": training["ema_decay"] if training["enable_ema"] else None,
            "log_every": training["disp_freq"],
            "checkpoint_every": training["save_freq"],
            "keep_checkpoints": max(int(training["max_ckpt_keep"]), 1),
            "refit_bias": bool(training["change_bias_after_training"]),
            "pin_isolated_atoms": False,
            "statistics_frames": max(frames, 100),
        }
        validating = self._section(top.get("validating") or {}, VALIDATING, "validating", VALIDATING_UNUSED)
        if validating["full_validation"]:
            quantity, _, error = str(validating["validation_metric"]).partition(":")
            if quantity not in METRICS or error not in ("MAE", "RMSE"):
                raise UserError(f"{self.where}: 'validating.validation_metric' must be like E:MAE or F:RMSE")
            out["valid_metric"] = f"{METRICS[quantity]}_{error.lower()}"
            out["valid_every"] = validating["validation_freq"]
        return out

    def _optimizer(self, given: Any, former: str | None) -> dict[str, Any]:
        optimizer = self._section(given or {"type": former or "Adam"}, OPTIMIZER, "optimizer") if _plain(given) else {}
        kind = str(optimizer.get("type", (given or {}).get("type"))).lower()
        if kind not in ("adam", "adamw"):
            self._refuse(f"optimizer.type: {(given or {}).get('type', former)}", "use Adam or AdamW")
        betas = [optimizer["adam_beta1"], optimizer["adam_beta2"]]
        return {"kind": kind, "betas": betas, "weight_decay": optimizer["weight_decay"]}

    def _rate(self, given: Any, steps: int | None) -> dict[str, Any]:
        rate = self._section(given, RATE, "learning_rate")
        if rate["start_lr"] is None:
            raise UserError(f"{self.where}: needs 'learning_rate.start_lr'")
        if rate["scale_by_worker"] is not None:
            self.unused.append("learning_rate.scale_by_worker")
        kinds = {"exp": "exponential", "cosine": "cosine", "wsd": "wsd"}
        if rate["type"] not in kinds:
            raise UserError(f"{self.where}: 'learning_rate.type' must be exp, cosine or wsd (given: {rate['type']!r})")
        warmup = int(rate["warmup_steps"] or 0)
        if rate["warmup_ratio"] is not None:
            if steps is None:
                self._refuse("learning_rate.warmup_ratio with numb_epoch", "give warmup_steps")
            warmup = int(rate["warmup_ratio"] * (steps or 0))
        if rate["stop_lr"] is not None and rate["stop_lr_ratio"] is not None:
            raise UserError(f"{self.where}: 'learning_rate' has both stop_lr and stop_lr_ratio; keep one")
        stop = rate["stop_lr"]
        if stop is None:
            stop = 5e-8 if rate["stop_lr_ratio"] is None else rate["start_lr"] * rate["stop_lr_ratio"]
        schedule: dict[str, Any] = {
            "kind": kinds[rate["type"]],
            # DeePMD-kit decays towards 1e-10 where 0 is asked for.
            "stop": max(float(stop), 1e-10),
            "warmup_steps": warmup,
            "warmup_start": rate["warmup_start_factor"],
        }
        if rate["type"] == "exp":
            schedule |= self._stairs(rate, steps, warmup)
        elif rate["type"] == "wsd":
            schedule |= {"decay_fraction": rate["decay_phase_ratio"], "decay_form": rate["decay_type"]}
        return {"learning_rate": rate["start_lr"], "schedule": schedule}

    def _stairs(self, rate: dict[str, Any], steps: int | None, warmup: int) -> dict[str, Any]:
        every = int(rate["decay_steps"])
        if rate["decay_rate"] is None:
            if steps is None:
                self.notes.append(
                    "learning_rate.decay_steps: the rate decays smoothly, as the steps come from numb_epoch"
                )
                return {}
            total = steps - warmup
            if every >= total:
                # DeePMD-kit's own choice for a run shorter than one stair.
                every = 100 if total // 10 > 100 else total // 100 + 1
        return {"decay_steps": every, "decay_rate": rate["decay_rate"], "smooth": bool(rate["smooth"])}

    def _loss(self, given: Any) -> dict[str, Any]:
        loss = self._section(given if given is not None else {}, LOSS, "loss")
        if loss["type"] != "ener":
            self._refuse(f"loss.type: {loss['type']}")
        for term, label in (
            ("h", "Hessian"),
            ("ae", "atomic energy"),
            ("pf", "weighted force"),
            ("gf", "generalised force"),
        ):
            on = [bool(loss[f"{end}_pref_{term}"]) for end in ("start", "limit")]
            if any(on) if term == "h" else all(on):
                self._refuse(f"loss.start_pref_{term} ({label} term)", "set it to 0")
        for key in ("relative_f", "enable_atom_ener_coeff"):
            if loss[key]:
                self._refuse(f"loss.{key}")
        if loss["loss_func"] not in ("mse", "mae"):
            raise UserError(f"{self.where}: 'loss.loss_func' must be mse or mae (given: {loss['loss_func']!r})")
        kind = "mae" if loss["loss_func"] == "mae" else "huber" if loss["use_huber"] else "mse"
        out: dict[str, Any] = {"kind": kind, "follow_warmup": True}
        for name, term in (("energy", "e"), ("force", "f"), ("virial", "v")):
            ends = [float(loss[f"start_pref_{term}"]), float(loss[f"limit_pref_{term}"])]
            if any(ends) and not all(ends):
                self.notes.append(f"loss: the {name} term is off, as in DeePMD-kit, because one of its prefactors is 0")
                ends = [0.0, 0.0]
            out[name] = ends
        if kind == "huber":
            out["huber_delta"] = loss["huber_delta"]
        if kind == "mse":
            out["intensive"] = bool(loss["intensive_ener_virial"])
        out["force_norm"] = bool(loss["f_use_norm"])
        return out


def _plain(given: Any) -> bool:
    return not isinstance(given, dict) or str(given.get("type", "Adam")).lower() in ("adam", "adamw")
