"""Distil a potential with two attention layers into a layer-free student, on the bundled germanium set.

python benchmarks/distill.py             # finished parts are kept: call it again to go on; → docs/results/distill.md
python benchmarks/distill.py --quick     # a minute, to see that it works; its numbers mean nothing

The teacher is trained here, with a fixed seed. The student learns from the teacher's labels of the training structures and
of copies of them that are rattled and strained; a control with the student's architecture and steps learns from DFT directly.
Errors are those on the published test split, which neither teacher nor student nor control has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import ONE_THREAD, machine, save, table

DATA = Path(__file__).parents[1] / "examples" / "data" / "mlearn_Ge"
TRAIN, TEST = DATA / "train.xyz.gz", DATA / "test.xyz.gz"
CUTOFF, SEED, COPIES = 5.0, 1, 2
STEPS = {"teacher": 2000, "student": 2000}
WIDTHS = {
    "teacher": {"size": "base", "attention_layers": 2, "cutoff": CUTOFF},
    "control": {"size": "small", "attention_layers": 0, "cutoff": CUTOFF},
}
NAMES = {
    "teacher": "teacher, 2 attention layers", "teacher_tabulated": "teacher, tabulated",
    "student": "student, layer-free", "student_tabulated": "student, tabulated",
    "control": "control: the student's architecture, trained on DFT",
}  # fmt: skip


def trained(name: str, steps: int, work: Path) -> dict[str, Any]:
    """Teacher or control, trained on the DFT labels."""
    import dpa1

    training: dict[str, Any] = {"steps": steps, "threads": 1, "device": "cpu"}
    if name == "teacher":
        training["batch_atoms"] = 64
    begun = time.process_time()
    run = dpa1.train(
        {
            "data": {"train": str(TRAIN)},
            "model": WIDTHS[name],
            "training": training,
            "loss": {"virial": [0.1, 1.0]},
            "output": str(work / name),
            "seed": SEED,
        },
        quiet=True,
    )
    return {"model": str(run.model), "steps": steps, "cpu_s": round(time.process_time() - begun, 1)}


def distilled(teacher: str, steps: int, work: Path) -> dict[str, Any]:
    """The student."""
    import dpa1
    from dpa1.distill import distill

    begun = time.process_time()
    found = distill(
        teacher, dpa1.read(str(TRAIN)), output=work / "student", augment=COPIES, steps=steps, seed=SEED, quiet=True
    )
    return {"model": str(found.model), "steps": steps, "cpu_s": round(time.process_time() - begun, 1)}


def measured(models: dict[str, str]) -> dict[str, Any]:
    """Errors against DFT and against the teacher on the test split; processor time per atom, all in turn."""
    import dpa1
    from dpa1.distill import label, speeds

    potentials = {name: dpa1.load(path) for name, path in models.items()}
    potentials["student_tabulated"] = potentials["student"].tabulated()
    frames = dpa1.read(str(TEST))
    teacher = potentials["teacher"].calculator()
    labelled = [label(teacher, frame) for frame in frames]
    against = {name: shown(dpa1.evaluate(potentials[name], labelled)) for name in potentials if name != "teacher"}
    calculators = {}
    for name in ("teacher", "student"):
        calculators[name] = potentials[name].calculator()
        calculators[f"{name}_tabulated"] = potentials[name].calculator(tabulate=True)
    seconds, atoms = speeds(calculators, frames)
    return {
        "against_dft": {name: shown(dpa1.evaluate(potential, frames)) for name, potential in potentials.items()},
        "against_teacher": against,
        "ms_per_atom": {name: round(1e3 * value / atoms, 4) for name, value in seconds.items()},
        "timed_atoms": atoms,
        "parameters": {name: sum(p.numel() for p in potentials[name].parameters()) for name in models},
    }


def shown(found: dict[str, Any]) -> dict[str, float]:
    """The errors of the tables."""
    return {
        "energy_rmse_meV_atom": round(1e3 * found["energy_rmse"], 3),
        "force_rmse_meV_A": round(1e3 * found["force_rmse"], 2),
    }


def run(work: Path, quick: bool) -> dict[str, Any]:
    """Everything that has not been done yet; each part's numbers lie beside its run."""
    import torch

    torch.set_num_threads(1)
    steps = dict.fromkeys(STEPS, 10) if quick else STEPS
    parts: dict[str, Any] = {}
    for name in ("teacher", "control", "student"):
        kept = work / f"{name}.json"
        if not kept.exists():
            shutil.rmtree(work / name, ignore_errors=True)
            found = (
                distilled(parts["teacher"]["model"], steps["student"], work)
                if name == "student"
                else trained(name, steps.get(name, steps["student"]), work)
            )
            save(found, kept)
        parts[name] = json.loads(kept.read_text())
        print(name, json.dumps(parts[name]), flush=True)
    load = os.getloadavg()[0]
    found = measured({name: part["model"] for name, part in parts.items()})
    for part in parts.values():
        del part["model"]
    return {
        "command": " ".join(["python benchmarks/distill.py", *(["--quick"] if quick else [])]), "machine": machine(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "load": round(load, 1), "copies": COPIES, "seed": SEED,
        "runs": parts, **found,
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The tables and what they say."""
    dft, mimic, ms = result["against_dft"], result["against_teacher"], result["ms_per_atom"]
    made_of = {"student_tabulated": "student"}
    rows = [
        [NAMES[name], result["parameters"][made_of.get(name, name)], e["energy_rmse_meV_atom"], e["force_rmse_meV_A"],
         *([mimic[name]["energy_rmse_meV_atom"], mimic[name]["force_rmse_meV_A"]] if name in mimic else ["–", "–"]),
         *([result["runs"][name][key] for key in ("steps", "cpu_s")] if name in result["runs"] else ["–", "–"])]
        for name, e in dft.items()
    ]  # fmt: skip
    header = ["model", "parameters", "E against DFT (meV/atom)", "F against DFT (meV/Å)", "E against teacher",
              "F against teacher", "steps", "CPU s"]  # fmt: skip
    speed = [[NAMES[name], f"{value:.4f}", f"{ms['teacher'] / value:.1f}×"] for name, value in ms.items()]
    best = min(("student", "student_tabulated"), key=ms.__getitem__)
    force = {name: dft[name]["force_rmse_meV_A"] for name in dft}
    gain, loss = ms["teacher"] / ms[best], 100 * (force[best] / force["teacher"] - 1)
    versus = 100 * (force["student"] / force["control"] - 1)
    return (
        "# Distillation\n\n"
        "Germanium (mlearn, bundled): a teacher of size `base` with two attention layers, and a student of size `small` "
        f"without any, distilled by `dpa1.distill.distill` from the teacher's labels of the training structures and "
        f"{result['copies']} rattled and strained copies of each. Cutoff 5 Å for all; RMSE on the published test split "
        "(25 frames).\n\n"
        + table(header, rows)
        + "\nCPU s of the student include the teacher's labels. All three are short runs.\n"
        + f"\nProcessor time of energy and forces for {result['timed_atoms']} atoms that move as in MD, medians of calls in "
        "turn, one thread, float32:\n\n"
        + table(["model", "ms per atom", "faster than the teacher"], speed)
        + f"\nThe {NAMES[best]}, is {gain:.1f} times as fast as the teacher, and its force error against DFT is "
        f"{abs(loss):.0f} % {'larger' if loss > 0 else 'smaller'}. The same architecture trained on the DFT labels "
        f"directly for as many steps has a force error of {force['control']:.0f} meV/Å, so learning from the teacher "
        f"{'helped' if versus < 0 else 'did not help'} here: the student's is {abs(versus):.0f} % "
        f"{'smaller' if versus < 0 else 'larger'} (one seed; no run was tuned).\n\n"
        f"Command: `{result['command']}`. {result['date']}, {result['machine']}, load {result['load']}.\n"
        "Raw: [raw/distill.json](raw/distill.json).\n"
    )


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten steps each, kept apart")
    parser.add_argument("--work", type=Path, default=Path("runs/distill"), help="where runs are kept")
    parser.add_argument("--output", type=Path, help="docs/results, or below --work with --quick")
    args = parser.parse_args()
    work = args.work / "quick" if args.quick else args.work
    output = args.output or (work if args.quick else Path("docs/results"))
    work.mkdir(parents=True, exist_ok=True)
    result = run(work, args.quick)
    save(result, output / "raw/distill.json")
    (output / "distill.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    # Before torch is loaded, which happens in the functions above; this process alone is affected.
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    main()
