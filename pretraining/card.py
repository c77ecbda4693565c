"""The model card of ``pbe``: what a finished run and its sources say, and what a person should know before using it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from refit import refit_bias
from sources import SOURCES

from dpa1.analysis.evaluate import evaluate
from dpa1.config.run import read_values
from dpa1.data.read import read
from dpa1.errors import counted
from dpa1.frames import Frame
from dpa1.model.file import load_model, save_model
from dpa1.model.potential import Potential
from dpa1.model.replay import attach_replay

DESCRIPTION = (
    "pbe: a DPA-1 potential pretrained on open PBE data over the periodic table, a start for fine-tuning. "
    "Level pbe: Materials-Project-like PBE(+U). Level pbe-acwf: non-spin-polarised PBE of the ACWF equations of state. "
    "Level pbe-lps: PBE of lithium thiophosphates. Level agau: PBE or PBEsol of silver-gold alloys. "
    "Level wb97x: ωB97X/6-31G(d) of one organic molecule of H, C, N and O. "
    "Level gfn1-xtb: the semi-empirical GFN1-xTB of 562 molecules, of clusters of them, and of water."
)
GOOD_FOR = [
    "the base of a fine-tune: dpa1 finetune pbe DATA --level pbe (crystals, surfaces, liquids) or --level wb97x (molecules)",
    "a first look at inorganic crystals, also compressed and hot ones, with errors as in the table",
]
NOT_GOOD_FOR = [
    "production results without fine-tuning: it is small and has seen 25,000 frames, three fifths of them crystals",
    "liquids, surfaces and molecules without fine-tuning: it knows water and all molecules but one from semi-empirical labels, surfaces not at all",
    "energy differences between levels of theory, and magnetic order or charge, which it cannot see",
    "elements of one level at the other: Am and Cm are known to pbe-acwf alone",
]
LICENCE = "MIT (weights); trained on data under MIT, BSD-3-Clause and CC-BY-4.0, named per source"
ROWS = 40  # of the training log that travel with the model
REFITTED = "; then the energy bias was refitted to the training frames, without the dimers"
REPLAY, REPLAY_ATOMS = 8, 40  # frames of each source that travel with the model, and atoms of the largest of them


def install(run: Path, data: Path, target: Path, name: str = "model.dpa1") -> None:
    """Write the model of a run with its card to ``target``; ``name``: ``model.dpa1``, or ``best.dpa1`` of an unfinished run."""
    potential = load_model(run / name)
    refit_bias(potential, data)
    potential.info.pop("errors", None)  # of before that; the card has those of now
    potential.info |= {"licence": LICENCE, "card": _card(potential, run, data)}
    attach_replay(potential, replay_frames(run, data))
    # Names of files on the machine it was trained on say nothing elsewhere; the card names the sources.
    potential.info.pop("sources", None)
    for part in ("train", "valid"):
        potential.info.get("run", {}).get("data", {}).pop(part, None)
    potential.info.get("run", {}).pop("output", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(potential, target)


def _card(potential: Potential, run: Path, data: Path) -> dict[str, Any]:
    held = json.loads((data / "held_back.json").read_text(encoding="utf-8"))
    dropped = _rows(run / "dropped.csv")
    log = [row for row in _rows(run / "metrics.csv") if row["valid_loss"]]
    every = max(1, len(log) // ROWS)
    return {
        "description": DESCRIPTION,
        "good_for": GOOD_FOR,
        "not_good_for": NOT_GOOD_FOR,
        "sources": [_source(potential, source.name, data) for source in SOURCES],
        "held_back": held,
        "dropped": "; ".join(f"{n} frames of {source} ({why})" for (source, why), n in _reasons(dropped).items()),
        "training": f"{history_of_run(run)}{REFITTED}",
        "log": [
            {key: float(row[key]) for key in ("step", "seconds", "valid_loss", "valid_energy_mae", "valid_force_mae")}
            for row in log[::-every][::-1]
        ],
    }


def before(run: Path) -> Path:
    """The file beside a run that says how the model it started from was trained, if it started from one."""
    return run.with_name(f"{run.name}-before.json")


def history_of_run(run: Path) -> str:
    """How the model of a run was trained, from random weights on, as far as is known."""
    earlier, last = before(run), [row for row in _rows(run / "metrics.csv") if row["valid_loss"]][-1]
    length = _length(read_values(run / "config.yaml")["training"], int(last["step"]), float(last["seconds"]))
    return f"{json.loads(earlier.read_text(encoding='utf-8'))}; from there {length}" if earlier.exists() else length


def history(potential: Potential, name: str) -> str:
    """How a model that comes without its run was trained, as far as it says; otherwise its name."""
    if "card" in potential.info:
        return str(potential.info["card"]["training"]).removesuffix(REFITTED)
    if "run" in potential.info:
        return _length(potential.info["run"]["training"], potential.info["steps"], potential.info["seconds"])
    return name


def _length(training: dict[str, Any], steps: int, seconds: float) -> str:
    """``training``: that section of the run's configuration."""
    threads = counted(training["threads"], "thread") if training["threads"] else "all threads"
    decay = training["optimizer"]["weight_decay"]
    how = f"(rate {training['learning_rate']:g}, weight decay {0.0 if decay is None else decay:g})"
    return f"{steps} steps of about {training['batch_atoms']} atoms {how} on {threads} of a CPU, {seconds / 3600:.1f} hours"


def replay_frames(run: Path, data: Path) -> list[Frame]:
    """A few small frames of every source that were trained on, sources in turn, so that any part holds all of them.

    Of each source the frames that are left after the outliers are taken evenly through the file, whose order is that of
    its families.
    """
    dropped = {(row["source"], int(row["frame"])) for row in _rows(run / "dropped.csv")}
    kept = []
    for source in SOURCES:
        frames = [
            frame
            for frame in read(data / "train" / f"{source.name}.xyz.gz")
            if len(frame) <= REPLAY_ATOMS and (source.name, frame.index) not in dropped
        ]
        places = np.unique(np.linspace(0, len(frames) - 1, min(REPLAY, len(frames))).round().astype(int))
        kept.append([replace(frames[k], level=source.level) for k in places])
    return [frame for frame in chain(*zip_longest(*kept)) if frame is not None]


def _reasons(rows: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    return Counter((row["source"], f"{row['quantity']} beyond {row['limit']} {row['unit']}") for row in rows)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _source(potential: Potential, name: str, data: Path) -> dict[str, Any]:
    source = next(s for s in SOURCES if s.name == name)
    counts = {part: _frames(data / part / f"{name}.xyz.gz") for part in ("train", "valid")}
    row: dict[str, Any] = {
        "name": name, "level": source.level, "licence": source.licence, "origin": source.origin,
        "files": list(source.files), "frames": counts["train"], "held_back": counts["valid"], "share": source.share,
    }  # fmt: skip
    errors = evaluate(potential, data / "valid" / f"{name}.xyz.gz", level=source.level)
    names = [f"{quantity}_{kind}" for quantity in ("energy", "force", "virial") for kind in ("mae", "rmse")]
    return row | {key: errors[key] for key in names if errors[key] == errors[key]}


def _frames(path: Path) -> int:
    from dpa1.data.read import iter_frames

    return sum(1 for _ in iter_frames(path))
