"""The results of the speed benchmark as a page: ``docs/results/speed.md`` from ``docs/results/raw/speed.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import table
from speed_cases import MFLOP, arithmetic
from speed_processes import quartiles
from speed_profile import KERNELS, KINDS, OTHER, grouped

DEEPMD, SAME, DEFAULT = "DeePMD-kit", "dpa1 (same weights)", "dpa1 (default)"
SAME_TABLE, DEFAULT_TABLE = "dpa1 (same weights, tabulated)", "dpa1 (default, tabulated)"
DTYPES = ("float32", "float64")
MISSING = "not measured"


def write_page(results: dict[str, Any], output: Path) -> None:
    """Write the page beside the folder that holds the raw results, or beside them."""
    folder = output.parent.parent if output.parent.name == "raw" else output.parent
    page = folder / (output.stem + ".md")
    link = output.relative_to(folder).as_posix()
    remarks = "".join(f"- {remark}\n" for remark in results.get("remarks", ()))  # a person's, kept in the raw results
    sections = [head(results, link), headline(results), remarks]
    sections += [measured(results, "inference"), measured(results, "training")]
    sections += [start(results), scaling(results), neighbors(results), waiting(results), profile(results)]
    sections += [matmul(results), notes(results)]
    page.write_text("\n".join(section for section in sections if section), encoding="utf-8")


def parts(results: dict[str, Any]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """System, layers, precision and content of the measured groups."""
    for name, part in results["parts"].items():
        if "facts" in part:
            system, layers, dtype = name.split("/")
            yield system, int(layers.split("-")[0]), dtype, part


def record(results: dict[str, Any], system: str, layers: int, dtype: str, task: str, program: str) -> dict[str, Any]:
    part = results["parts"].get(f"{system}/{layers}-layers/{dtype}", {})
    return dict(part.get(task, {}).get(program, {}))


def rate(results: dict[str, Any], dtype: str) -> float | None:
    """FLOP/s: the best of the model's shapes."""
    rates = results["parts"].get("matmul", {}).get("rates", {}).get(dtype)
    return max(rates.values()) if rates else None


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 10 else 1}f}" if value >= 1 else f"{value:.3g}"


def spread(values: list[float], factor: float = 1.0) -> str:
    low, middle, high = (factor * v for v in quartiles(values))
    return f"{number(middle)} ({number(low)}–{number(high)})"


def times(ratio: list[float]) -> str:
    return f"**{ratio[1]:.1f}×** ({ratio[0]:.1f}–{ratio[2]:.1f})"


def title(system: str) -> str:
    name, _, count = system.partition("-")
    return f"{'water' if name == 'water' else 'Li₄P₂S₇'}, {int(count):,} atoms"


def head(results: dict[str, Any], link: str) -> str:
    e = results["environment"]
    theirs = (
        f"DeePMD-kit {e['deepmd-kit']} (PyTorch backend, torch {e['deepmd_torch'].split('+')[0]})"
        if e["deepmd-kit"]
        else "DeePMD-kit was not measured"
    )
    quick = "\n**A quick run: few cases, few repetitions; not for comparison.**\n" if e["quick"] else ""
    place = e["gpu"] or f"{e['cpu']}, {e['threads']} thread{'s' if e['threads'] > 1 else ''} of {e['cores']} cores"
    return (
        f"# Speed and memory, next to DeePMD-kit\n{quick}\n"
        f"{place}, {e['memory_gb']} GB of free memory, load {e['load']:.1f} at the start; dpa1 {e['dpa1']} with torch "
        f"{e['torch'].split('+')[0]}, Python {e['python']}; {theirs}. {when(results)} Raw: [{link}]({link}).\n\n"
        "Cutoff 6 Å, sel 120 (never full), embedding 25-50-100, attention width 128, fitting 240-240-240. *Same weights*: "
        "both programs compute the same function from the same file (`convention: deepmd`, smooth attention, Adam). "
        "*Default*: the convention and optimizer users of this package train with (`smooth`, Muon), the same widths.\n"
    )


def when(results: dict[str, Any]) -> str:
    """Date and command; of parts that were measured one after another, all dates."""
    e = results["environment"]
    if "--only" not in e["command"]:
        return f"{e['date']}, `{e['command']}` (`make bench` does the same)."
    dates: dict[str, list[str]] = {}
    for name, part in results["parts"].items():
        dates.setdefault(part["date"][:13], []).append(f"`{name}`")
    parts = "; ".join(f"{hour}h {', '.join(names)}" for hour, names in sorted(dates.items()))
    return f"Measured in parts, `make bench` measures all of them: {parts}. The last command: `{e['command']}`."


def headline(results: dict[str, Any]) -> str:
    rows = []

    def ratio_row(text: str, goal: float, system: str, layers: int, task: str, programs: tuple[str, ...]) -> None:
        cells, reached = [], []
        for program in programs:
            for dtype in DTYPES:
                found = record(results, system, layers, dtype, task, program)
                if "ratio" in found:
                    reached.append(found["ratio"][1])
                    cells.append(f"{found['ratio'][1]:.1f}×")
                else:
                    cells.append("–")
        verdict = (
            MISSING if not reached else "yes" if min(reached) >= goal else "no" if max(reached) < goal else "in part"
        )
        rows.append([text, f"≥ {goal:g}×", *cells, verdict])

    both = (SAME, DEFAULT)
    ratio_row("training step, 2 layers, 192 atoms", 4, "water-192", 2, "training", both)
    ratio_row("inference, 2 layers, 1,536 atoms", 8, "water-1536", 2, "inference", both)
    ratio_row("training step, no attention, 192 atoms", 3, "water-192", 0, "training", both)
    ratio_row("inference, no attention, 1,536 atoms", 3, "water-1536", 0, "inference", both)
    ratio_row("the same, tabulated", 6, "water-1536", 0, "inference", (SAME_TABLE, DEFAULT_TABLE))
    header = [
        "DeePMD-kit's time / ours",
        "goal",
        "same weights, float32",
        "float64",
        "default, float32",
        "float64",
        "reached",
    ]
    return (
        "## In short\n\n"
        + table(header, rows)
        + "\n"
        + table(["other goals", "goal", "measured", "reached"], others(results))
    )


def others(results: dict[str, Any]) -> list[list[str]]:
    """Memory, neighbour lists, data, size: one row each."""
    rows = []

    def row(text: str, goal: str, value: float | None, shown: str, holds: bool) -> None:
        rows.append(
            [text, goal, MISSING if value is None else shown, MISSING if value is None else "yes" if holds else "no"]
        )

    memory = []
    for dtype in DTYPES:
        ours, theirs = (record(results, "water-192", 2, dtype, "training", p).get("peak") for p in (SAME, DEEPMD))
        memory += [ours / theirs] if ours and theirs else []
    worst = max(memory, default=None)
    row(
        "peak memory of a training step, 192 atoms, 2 layers, against DeePMD-kit",
        "≤ 1/4",
        worst,
        f"1/{1 / (worst or 1):.1f}",
        (worst or 1) <= 0.25,
    )
    largest = [
        r
        for rows_ in results["parts"].get("scaling", {}).get("rows", {}).values()
        for r in rows_.values()
        if "peak" in r
    ]
    big = max((r["atoms"] for r in largest), default=0)
    peak = max((r["peak"] / r["atoms"] / 1e6 for r in largest if r["atoms"] == big), default=None)
    row(
        f"peak memory of inference, {big:,} atoms",
        "≤ 0.2 MB/atom",
        peak,
        f"{number(peak or 0)} MB/atom",
        (peak or 1) <= 0.2,
    )
    shares = [share for *_, share in neighbor_shares(results)]
    row(
        "neighbour list, largest share of an inference",
        "≤ 10 %",
        max(shares, default=None),
        f"{100 * max(shares, default=0):.1f} %",
        max(shares, default=1) <= 0.1,
    )
    waits = [
        c["waiting_s"] / (c["waiting_s"] + c["steps_s"])
        for c in results["parts"].get("waiting", {}).get("cases", {}).values()
    ]
    row(
        "waiting for data while training, largest share",
        "≤ 5 %",
        max(waits, default=None),
        f"{100 * max(waits, default=0):.2f} %",
        max(waits, default=1) <= 0.05,
    )
    for name, sizes in results["parts"].get("scaling", {}).get("rows", {}).items():
        costs = [quartiles(r["seconds"])[1] / r["atoms"] for r in sizes.values() if "seconds" in r]
        flat = max(costs) / min(costs) if len(costs) > 1 else None
        text = f"time per atom from 10² to 10⁵ atoms, {name}: largest / smallest"
        row(text, "flat", flat, f"{flat or 0:.1f}", (flat or 9) <= 1.5)
    return rows


def measured(results: dict[str, Any], task: str) -> str:
    rows = []
    for system, layers, dtype, part in parts(results):
        peak_rate = rate(results, dtype)
        for program, found in part[task].items():
            case = [title(system), layers, dtype, program]
            if "seconds" not in found:
                rows.append([*case, found.get("failed", MISSING), "", "", ""])
                continue
            atoms, middle = part["facts"]["atoms"], quartiles(found["seconds"])[1]
            shown = spread(found["seconds"], 1e3 / atoms if task == "inference" else 1.0)
            work = arithmetic(part["facts"]["neighbors"], layers, task) * atoms
            share = f"{100 * work / middle / peak_rate:.0f} %" if peak_rate and "tabulated" not in program else "–"
            rows.append([*case, f"{shown}, n = {len(found['seconds'])}", times(found["ratio"]) if "ratio" in found else "",
                         number(found["peak"] / atoms / 1e6), share])  # fmt: skip
    unit = "ms per atom" if task == "inference" else "s per step"
    what = (
        "energy, forces and virial, neighbour list included"
        if task == "inference"
        else "one optimizer step on all atoms, energy and forces"
    )
    header = [
        "structure",
        "layers",
        "precision",
        "program",
        f"{unit} (quartiles)",
        "DeePMD-kit's time / this",
        "peak MB per atom",
        "of the matmul rate",
    ]
    return f"\n## {task.capitalize()}: {what}\n\n" + table(header, rows)


def start(results: dict[str, Any]) -> str:
    programs = results["parts"].get("start", {}).get("programs", {})
    rows = []
    for program, runs in programs.items():
        cells = [number(quartiles([r[key] for r in runs])[1]) for key in ("total_s", "import_s", "load_s", "first_s")]
        rows.append([program.replace(" (same weights)", ""), *cells, len(runs)])
    header = ["program", "total (s)", "import", "open the model", "first call", "processes"]
    return (
        "\n## Time to the first force\n\nNew process, water, 192 atoms, 2 layers, float32; file cache warm.\n\n"
        + table(header, rows)
    )


def scaling(results: dict[str, Any]) -> str:
    rows = []
    for name, sizes in results["parts"].get("scaling", {}).get("rows", {}).items():
        for r in sizes.values():
            case = [name, f"{r['atoms']:,}"]
            if "failed" in r:
                rows.append([*case, r["failed"], "", ""])
                continue
            middle = quartiles(r["seconds"])[1]
            cost = f"{spread(r['seconds'], 1e3 / r['atoms'])}, n = {len(r['seconds'])}"
            rows.append([*case, cost, number(r["peak"] / r["atoms"] / 1e6), f"{100 * r['neighbors_s'] / middle:.1f} %"])
    header = ["model", "atoms", "ms per atom (quartiles)", "peak MB per atom", "neighbour list"]
    return "\n## From 10² to 10⁵ atoms\n\nThis package, default convention, water, float32, inference.\n\n" + table(
        header, rows
    )


def neighbor_shares(results: dict[str, Any]) -> Iterator[tuple[str, int, str, str, float, float]]:
    for system, layers, dtype, part in parts(results):
        for program, found in part["inference"].items():
            if "neighbors_s" in found and "seconds" in found:
                spent = found["neighbors_s"]
                yield system, layers, dtype, program, spent, spent / quartiles(found["seconds"])[1]


def neighbors(results: dict[str, Any]) -> str:
    rows = [[title(s), layers, dtype, program, number(1e6 * spent / int(s.split("-")[1])), f"{100 * share:.1f} %"]
            for s, layers, dtype, program, spent, share in neighbor_shares(results)]  # fmt: skip
    header = ["structure", "layers", "precision", "program", "µs per atom", "share of the inference"]
    return (
        "\n## Neighbour list and batch\n\nBuilt anew in every call; molecular dynamics reuses it while atoms move less than the skin allows.\n\n"
        + table(header, rows)
    )


def waiting(results: dict[str, Any]) -> str:
    rows = []
    for name, c in results["parts"].get("waiting", {}).get("cases", {}).items():
        total = c["waiting_s"] + c["steps_s"]
        rows.append(
            [
                name,
                c["steps"],
                number(1e3 * c["steps_s"] / c["steps"]),
                number(1e3 * c["waiting_s"] / c["steps"]),
                f"{100 * c['waiting_s'] / total:.2f} %",
            ]
        )
    header = ["model", "steps", "ms per step", "ms waiting per step", "share"]
    return (
        "\n## Waiting for data\n\n`dpa1 train` on a packed store of 64 frames of 192 atoms, default convention, float32, after the first epoch.\n\n"
        + table(header, rows)
    )


def profile(results: dict[str, Any]) -> str:
    cases = results["parts"].get("profile", {}).get("cases", {})
    rows = []
    shares = [{kind: spent / case["wall_s"] for kind, spent in grouped(case).items()} for case in cases.values()]
    for kind in [*KINDS, KERNELS, OTHER]:
        if kind != KERNELS or any(KERNELS in share for share in shares):
            rows.append([kind, *(f"{100 * share.get(kind, 0.0):.0f} %" for share in shares)])
    rows.append(["time under the profiler (ms)", *(number(1e3 * case["wall_s"]) for case in cases.values())])
    lines = []
    for name, case in cases.items():
        top = sorted(case["operators"].items(), key=lambda item: -item[1])[:8]
        lines.append(
            f"- {name}: " + ", ".join(f"`{op.removeprefix('aten::')}` {1e3 * s:.1f}" for op, s in top if s > 0)
        )
    body = table(["", *cases], rows)
    return (
        "\n## Where the time goes\n\nThis package, same weights as DeePMD-kit, water, 192 atoms; one thread; self time by torch operator.\n\n"
        + body
        + "\nLargest operators (ms):\n\n"
        + "\n".join(lines)
        + "\n"
    )


def matmul(results: dict[str, Any]) -> str:
    part = results["parts"].get("matmul", {})
    if "rates" not in part:
        return ""
    rows = [[name, " × ".join(map(str, shape)), *(f"{part['rates'][d][name] / 1e9:.0f}" for d in DTYPES)]
            for name, shape in part["shapes"].items()]  # fmt: skip
    return (
        "\n## The machine's matrix products\n\nOf the shapes of this model (192 atoms, 90 neighbours), into memory that is "
        "already there. The fractions above are relative to the best of each column.\n\n"
        + table(["product", "batch × m × k × n", "float32 (GFLOP/s)", "float64 (GFLOP/s)"], rows)
    )


def notes(results: dict[str, Any]) -> str:
    """How it was measured, and what failed as a whole."""
    found = [part["agreement"] for *_, part in parts(results) if "agreement" in part]
    largest = {
        d: max(
            (p["agreement"]["forces"] for *_, dtype, p in parts(results) if dtype == d and "agreement" in p),
            default=None,
        )
        for d in DTYPES
    }
    same = "; ".join(f"{value:.0e} eV/Å in {d}" for d, value in largest.items() if value is not None)
    agree = (
        f"- Same weights, same numbers: the largest difference of a force component between the programs is {same} (forces up to {max(f['largest_force'] for f in found):.1e} eV/Å, untrained weights).\n"
        if found
        else ""
    )
    return (
        "\n## How it is measured\n\n"
        "- Per structure, weights and precision each program runs in a process of its own; they are asked in turn. Asked for "
        "something short, a program does it up to six times in 0.6 s, at least twice, and gives the median of all but the first, "
        "which finds threads asleep and caches filled by the other program. Medians of these over the rounds, with first and third "
        "quartile; the ratio is taken within each round, then its quartiles.\n"
        "- Warming up is excluded: four calls of DeePMD-kit (TorchScript optimises itself during the first ones), two of this "
        "package, on the small structure when the case is large, then one or two on the structure itself.\n"
        "- DeePMD-kit's inference is `DeepPot.eval` on the frozen `.pth`; its training step is what its trainer's loop does: "
        "model and loss forward, backward, Adam. Ours is `predict` of a fresh batch, and the training step of `dpa1 train` "
        "with the neighbour list from the cache, as from the second epoch on; freed memory is kept for reuse, as in every run "
        "of `dpa1`. The tabulated rows are compared with DeePMD-kit's "
        "untabulated model: with type embeddings entering beside the distance it cannot compress.\n"
        f"- The arithmetic per atom is {MFLOP['forward']:g} MFLOP forward, {MFLOP['inference']:g} with forces and "
        f"{MFLOP['training']:g} for a training step at 90 neighbours and two layers, scaled to the real neighbours and layers of each case. "
        "Empty slots count as waste; tables do other arithmetic, so they have no fraction.\n"
        "- Peak memory is the largest resident size during the call minus that after importing, which in both programs includes torch's compiler, "
        "though torch imports it with the first optimizer only. *Does not fit* means that the "
        "process, allowed 90 % of the memory that was free, asked for more.\n"
        + agree
        + "- Water is made by a script (rigid molecules near a lattice, as many neighbours as in the liquid); the sulfide is a frame of molecular dynamics.\n"
    )
