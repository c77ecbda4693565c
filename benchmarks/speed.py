"""Speed and memory: this package and DeePMD-kit, side by side.

    make bench                                         # everything; DeePMD-kit is installed into .bench/deepmd first
    make bench ARGS='--quick'                          # a few minutes: 192 water atoms in float32, few repetitions
    python benchmarks/speed.py --deepmd-env ENV        # an environment that holds deepmd-kit 3.2 and torch
    python benchmarks/speed.py --no-deepmd             # this package alone
    python benchmarks/speed.py --only 'water-192/*'    # these parts again; the others stay as they are in the results
    python benchmarks/speed.py --resume                # only what the results lack: after an interruption
    python benchmarks/speed.py --page                  # the page again from the results

Every program runs in a process of its own per structure, weights and precision. The processes stay alive and are asked in
turn – A, B, C, A, B, C … – so that whatever else the machine does meets all of them. Both run the same weights
(``dpa1 (same weights)``, convention: deepmd); ``dpa1 (default)`` is the convention that users of this package train.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from speed_cases import FITTING, Group, groups, matmul_shapes, model, structure, write_frames
from speed_page import DEEPMD, DEFAULT, DEFAULT_TABLE, SAME, SAME_TABLE, write_page
from speed_processes import FailedError, Worker, available_memory, quartiles
from speed_setup import deepmd_python, environment, logged

TABLES = (SAME_TABLE, DEFAULT_TABLE)
LARGEST = "water-12288"  # comes last: an interrupted benchmark has all else
PROFILED = STARTED = TRAINED = "water-192"
SCALING = ("water-81", "water-192", "water-1029", "water-10125", "water-98304")
LONG = 5.0  # s; a call that takes longer is repeated less


class Bench:
    """One run of the benchmark: makes the files, asks the processes, keeps the results on disk after every part."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        if args.output.exists() and (args.resume or args.only or args.page):
            self.results = json.loads(args.output.read_text())
        self.systems: dict[str, tuple[Path, dict[str, float]]] = {}
        self.deepmd = None if args.no_deepmd or args.page else deepmd_python(args, self.work)
        self.converted: set[Path] = set()

    def run(self) -> None:
        parts: dict[str, Callable[[], Any]] = {"matmul": self.matmul}
        others = {"start": self.start, "profile": self.profile, "waiting": self.waiting, "scaling": self.scaling}
        for group in groups(self.args.quick):
            if group.system == LARGEST:
                parts |= others
            parts[group.key] = lambda group=group: self.group(group)
        parts |= others
        chosen = [name for name in parts if any(fnmatch(name, pattern) for pattern in self.args.only or ["*"])]
        if self.args.only and not chosen:
            raise SystemExit(f"--only {' '.join(self.args.only)}: matches no part; there are {', '.join(parts)}")
        self.results["environment"] = environment(self.args, self.deepmd)
        done = self.results.setdefault("parts", {})
        for name in chosen:
            if self.args.resume and name in done:
                continue
            begun = time.perf_counter()
            print(f"{name} …", flush=True)
            try:
                part = parts[name]()
            except FailedError as error:
                part = {"failed": error.reason}
                print(f"{name}: {error.reason}", file=sys.stderr, flush=True)
            done[name] = {**part, "date": time.strftime("%Y-%m-%d %H:%M")}
            done[name]["took_s"] = round(time.perf_counter() - begun, 1)
            save(self.results, self.args.output)
            write_page(self.results, self.args.output)
            print(f"{name}: {done[name]['took_s']:.0f} s", flush=True)

    def system(self, name: str) -> tuple[Path, dict[str, float]]:
        if name not in self.systems:
            self.systems[name] = structure(name, self.work)
        return self.systems[name]

    def model(self, group: Group, convention: str) -> Path:
        """The weights as a file; those of the deepmd convention also as DeePMD-kit's frozen model."""
        # The mean neighbour number is part of the smooth convention, so the weights belong to one kind of material.
        material = group.system.split("-")[0]
        reference = "water-192" if material == "water" else group.system
        path = self.work / f"{material}-{convention}-{group.layers}-{group.dtype}.dpa1"
        if not path.exists():
            neighbors = self.system(reference)[1]["neighbors"]
            model(convention, group.elements, group.layers, group.dtype, neighbors, path)
        frozen = path.with_suffix(".pth")
        if convention == "deepmd" and self.deepmd and not frozen.exists():
            from dpa1.interop.convert import convert

            convert(path, path.with_suffix(".dp"), overwrite=True)
            command = [str(self.deepmd), "-m", "deepmd", "convert-backend", str(path.with_suffix(".dp")), str(frozen)]
            logged(command, self.work / "convert.log")
        return path

    def worker(self, program: str, group: Group) -> Worker:
        """A fresh process that has imported its program and loaded weights and structure."""
        path = self.model(group, "smooth" if program in (DEFAULT, DEFAULT_TABLE) else "deepmd")
        if program == DEEPMD:
            path = path.with_suffix(".pth")
        files = {"model": str(path), "structure": str(self.system(group.system)[0]), "tabulated": program in TABLES}
        interpreter = self.deepmd if program == DEEPMD else Path(sys.executable)
        kind = "deepmd-kit" if program == DEEPMD else "dpa1"
        worker = Worker(interpreter, kind, self.args.device, self.args.threads, self.work / "workers.log")
        try:
            loaded = worker.ask("load", **files)
        except FailedError:
            worker.close()
            raise
        worker.loaded = loaded
        return worker

    def programs(self, task: str, layers: int) -> list[str]:
        """Who takes part: tables are for inference, and compared where DeePMD-kit's own would be, without attention."""
        exact = [DEEPMD, SAME, DEFAULT] if self.deepmd else [SAME, DEFAULT]
        return [*exact, *TABLES] if task == "inference" and layers == 0 else exact

    def group(self, group: Group) -> dict[str, Any]:
        """Inference and training of all programs on one structure, in turn."""
        facts = self.system(group.system)[1]
        out: dict[str, Any] = {"facts": facts, "inference": {}, "training": {}}
        workers: dict[str, Worker] = {}
        try:
            self.task("inference", group, workers, out)
            for program in [p for p in (SAME, DEFAULT) if p in workers]:
                spent = [workers[program].ask("neighbors")["seconds"] for _ in range(3)]
                out["inference"][program]["neighbors_s"] = quartiles(spent)[1]
            if DEEPMD in workers and SAME in workers and out["facts"]["atoms"] < 200:
                # Before training, which moves the weights.
                out["agreement"] = agreement(workers[DEEPMD], workers[SAME], self.work)
            for program in [p for p in TABLES if p in workers]:
                workers.pop(program).close()
            self.task("training", group, workers, out)
        finally:
            for worker in workers.values():
                worker.close()
        return out

    def task(self, task: str, group: Group, workers: dict[str, Worker], out: dict[str, Any]) -> None:
        """First one call of each program that measures its memory, then the calls in turn that are timed."""
        records = out[task]
        for program in self.programs(task, group.layers):
            if "failed" in out["inference"].get(program, {}):
                records[program] = {"failed": "not tried: inference, which needs less, did not fit"}
                continue
            records[program] = self.first(task, program, group, workers)
        running = {p: r for p, r in records.items() if "failed" not in r}
        if not running:
            return
        slowest = max(record["first_s"] for record in running.values())
        least = 3 if slowest < LONG and not self.args.quick else 2 if DEEPMD in running else 1
        rounds = int(min(max(self.args.seconds / slowest, least), 15))
        spent: dict[str, list[float]] = {program: [] for program in running}
        for _ in range(rounds):
            for program in list(running):
                try:
                    self.ready(task, program, group, workers)
                    answer = workers[program].ask(task, **self.options(task, program))
                except FailedError as error:
                    records[program] = {"failed": error.reason, "first_s": records[program]["first_s"]}
                    if program in workers:
                        workers.pop(program).close()
                    del running[program]
                    continue
                spent[program].append(answer["seconds"])
                running[program]["peak"] = max(running[program]["peak"], answer["peak"])
        for program, record in running.items():
            record["seconds"] = spent[program]
            if DEEPMD in running and program != DEEPMD:
                pairs = zip(spent[DEEPMD], spent[program], strict=True)
                record["ratio"] = quartiles([theirs / ours for theirs, ours in pairs])

    def first(self, task: str, program: str, group: Group, workers: dict[str, Worker]) -> dict[str, Any]:
        """Warm the program up and measure the memory of one call, once more alone when the others hold much of it."""
        for alone in (False, True):
            try:
                self.ready(task, program, group, workers, fresh_task=True)
                answer = workers[program].ask(task, **self.options(task, program))
                if answer["seconds"] < LONG:
                    again = workers[program].ask(task, **self.options(task, program))
                    answer = {"seconds": again["seconds"], "peak": max(answer["peak"], again["peak"])}
                return {"first_s": answer["seconds"], "peak": answer["peak"]}
            except FailedError as error:
                if program in workers:
                    workers.pop(program).close()
                held = sum(worker.resident() for worker in workers.values())
                if error.kind != "memory" or alone or held < 0.1 * available_memory():
                    return {"failed": error.reason}
                for name in list(workers):
                    workers.pop(name).close()
        raise AssertionError("unreachable")

    def ready(
        self, task: str, program: str, group: Group, workers: dict[str, Worker], fresh_task: bool = False
    ) -> None:
        """A warm process for the program, started when there is none (any more)."""
        started = program not in workers
        if started:
            workers[program] = self.worker(program, group)
        if started or fresh_task:
            self.warm_up(workers[program], task, program, group)

    def warm_up(self, worker: Worker, task: str, program: str, group: Group) -> None:
        """Some calls, on the small structure of the same material when this one is large."""
        small = group.system.startswith("water") and group.system != "water-192"
        if small:
            worker.ask("structure", path=str(self.system("water-192")[0]))
        # DeePMD-kit's TorchScript model needs four calls until it stops optimising itself.
        for _ in range(4 if program == DEEPMD and task == "inference" else 2):
            worker.ask(task, **self.options(task, program))
        if small:
            worker.ask("structure", path=str(self.system(group.system)[0]))

    def options(self, task: str, program: str) -> dict[str, Any]:
        options: dict[str, Any] = {"limit": min(0.9 * available_memory(), self.args.memory * 1e9)}
        if task == "training":
            options["optimizer"] = "muon" if program == DEFAULT else "adam"
        return options

    def matmul(self) -> dict[str, Any]:
        """The machine's rate for the products of the model, FLOP/s."""
        shapes = matmul_shapes()
        with Worker(Path(sys.executable), "dpa1", self.args.device, self.args.threads, self.work / "workers.log") as w:
            seconds = 0.1 if self.args.quick else 0.7
            rates = {d: w.ask("matmul", dtype=d, shapes=list(shapes.values()), seconds=seconds)["rates"]
                     for d in ("float32", "float64")}  # fmt: skip
        return {"shapes": shapes, "rates": {d: dict(zip(shapes, r, strict=True)) for d, r in rates.items()}}

    def start(self) -> dict[str, Any]:
        """From starting the interpreter to the first energy, forces and virial of 192 atoms."""
        group, out = Group(STARTED, 2, "float32"), {}
        for _ in range(1 if self.args.quick else 3):
            for program in self.programs("inference", 2)[:2]:
                self.model(group, "deepmd")
                begun = time.perf_counter()
                with self.worker(program, group) as worker:
                    first = worker.ask("inference")["seconds"]
                    record = {"total_s": time.perf_counter() - begun, "first_s": first}
                    record |= {key: worker.loaded[key] for key in ("import_s", "load_s", "torch")}
                out.setdefault(program, []).append(record)
        return {"programs": out}

    def profile(self) -> dict[str, Any]:
        """Where the time of this package goes, by torch operator."""
        out = {}
        for group in [g for g in groups(self.args.quick) if g.system == PROFILED]:
            with self.worker(SAME, group) as worker:
                for task in ("inference", "training"):
                    repeats = 1 if self.args.quick else 3 if group.layers else 10
                    out[f"{group.layers} layers, {group.dtype}, {task}"] = worker.ask(
                        "profile", task=task, optimizer="adam", repeats=repeats
                    )
        return {"cases": out}

    def scaling(self) -> dict[str, Any]:
        """Inference of this package from 10² to 10⁵ atoms, float32, the convention users train."""
        out: dict[str, Any] = {}
        for layers in (0, 2):
            for program in (DEFAULT, DEFAULT_TABLE):
                out[f"{layers} layers" + (", tabulated" if program in TABLES else "")] = rows = {}
                for name in SCALING[: 1 if self.args.quick else None]:
                    rows[name] = self.scaled(Group(name, layers, "float32"), program)
        return {"rows": out}

    def scaled(self, group: Group, program: str) -> dict[str, Any]:
        facts = self.system(group.system)[1]
        try:
            with self.worker(program, group) as worker:
                worker.ask("structure", path=str(self.system("water-192")[0]))
                worker.ask("inference")
                worker.ask("structure", path=str(self.system(group.system)[0]))
                answers = [worker.ask("inference", **self.options("inference", program))]
                while sum(a["seconds"] for a in answers) < self.args.seconds / 4 and len(answers) < 9:
                    answers.append(worker.ask("inference", **self.options("inference", program)))
                neighbors = worker.ask("neighbors")["seconds"]
        except FailedError as error:
            return {**facts, "failed": error.reason}
        seconds, peak = [a["seconds"] for a in answers], max(a["peak"] for a in answers)
        return {**facts, "seconds": seconds, "peak": peak, "neighbors_s": neighbors}

    def waiting(self) -> dict[str, Any]:
        """``dpa1 train`` on a packed store of 64 frames of 192 atoms: the share of time it waits for data."""
        from dpa1.data.pack import pack

        store, out = self.work / "water.dpa1data", {}
        if not store.exists():
            frames = self.work / "water.xyz"
            write_frames(np.load(self.system(TRAINED)[0]), frames, 64)
            pack(str(frames), store)
        skip, steps = (5, 20) if self.args.quick else (66, 200)
        for layers in (0,) if self.args.quick else (0, 2):
            if layers:
                skip, steps = 66, 86
            run = self.work / f"run-{layers}"
            shutil.rmtree(run, ignore_errors=True)
            config = {
                "data": {"train": str(store), "valid": None},
                "model": {"size": "base", "attention_layers": layers, "fitting": list(FITTING)},
                "training": {"steps": steps, "batch_atoms": 192, "threads": self.args.threads},
                "output": str(run),
            }
            with Worker(
                Path(sys.executable), "dpa1", self.args.device, self.args.threads, self.work / "workers.log"
            ) as w:
                out[f"{layers} layers"] = w.ask("waiting", config=config, skip=skip)
        return {"cases": out}


def agreement(theirs: Worker, ours: Worker, work: Path) -> dict[str, float]:
    """Largest differences between the two programs on the same weights and structure (eV per atom, eV/Å, eV)."""
    found = []
    for name, worker in (("theirs", theirs), ("ours", ours)):
        worker.ask("result", path=str(work / f"{name}.npz"))
        found.append(np.load(work / f"{name}.npz"))
    a, b = found
    atoms = len(a["forces"])
    return {"energy_per_atom": float(abs(a["energy"] - b["energy"]) / atoms),
            "forces": float(abs(a["forces"] - b["forces"]).max()),
            "virial": float(abs(a["virial"] - b["virial"]).max()),
            "largest_force": float(abs(a["forces"]).max())}  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="192 water atoms in float32 only, few repetitions")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="parts to measure (patterns), merged into the results"
    )
    parser.add_argument("--resume", action="store_true", help="measure only the parts that the results lack")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument("--threads", type=int, default=available_cores(), help="CPU threads of each program")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, help="aim of one measurement of the slowest program; default 10")
    parser.add_argument("--memory", type=float, default=float("inf"), metavar="GB", help="most that one case may take")
    parser.add_argument("--deepmd-env", type=Path, help="environment with deepmd-kit 3.2; made when not given")
    parser.add_argument("--pip-option", action="append", default=[], metavar="OPTION",
                        help="for installing DeePMD-kit, as in --pip-option=--index-url=URL; may be repeated")  # fmt: skip
    parser.add_argument("--no-deepmd", action="store_true", help="measure this package alone")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="structures, weights, logs, DeePMD-kit")
    parser.add_argument("--output", type=Path, default=Path("docs/results/raw/speed.json"), help="results; page beside")
    return parser


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    args = options().parse_args()
    args.seconds = args.seconds or (1.0 if args.quick else 10.0)
    bench = Bench(args)
    if args.page:
        write_page(bench.results, args.output)
    else:
        bench.run()


if __name__ == "__main__":
    main()
