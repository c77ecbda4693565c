"""``dpa1 data check`` and ``dpa1 data pack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.terminal import Progress, to_json
from dpa1.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

Data = Annotated[list[str], typer.Argument(help="Files, folders, patterns or file.h5#/group that dpa1 reads.")]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="QUANTITY=KEY", help="What a label is called in the files, e.g. energy=my_energy."),
]
TypeMap = Annotated[
    str | None, typer.Option(help="Elements by type index for DeePMD systems without type_map.raw, e.g. O,H.")
]

app = typer.Typer(help="Look at data before training, and pack it for large runs.", no_args_is_help=True)


def register(main: typer.Typer) -> None:
    """Add the verb."""
    main.add_typer(app, name="data")


@app.command("check")
def check_command(
    data: Data,
    label: Label = None,
    type_map: TypeMap = None,
    cutoff: Annotated[float, typer.Option(min=0.5, help="Å, for the neighbour numbers.")] = 6.0,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What the data hold, and what looks wrong. Exit code 0 with warnings, 2 when the data cannot be used."""
    from dpa1.data.check import check

    progress = Progress(None, "frames")

    def update(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    result = check(data, parse_labels(label), parse_type_map(type_map), cutoff, update)
    progress.close()
    if json:
        typer.echo(to_json(result.as_dict()))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for item in page(result.facts):
            console.print(item, markup=False, soft_wrap=isinstance(item, str))
        for warning in result.warnings:
            console.print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)
        for error in result.errors:
            console.print(f"error: {error}", markup=False, style="red", soft_wrap=True)
    if result.errors:
        more = f" (and {len(result.errors) - 1} more)" if len(result.errors) > 1 else ""
        raise UserError(f"the data cannot be used: {result.errors[0]}{more}")


@app.command("pack")
def pack_command(
    data: Data,
    store: Annotated[Path, typer.Argument(help="The packed store to write; must not exist.")],
    label: Label = None,
    type_map: TypeMap = None,
    level: Annotated[str | None, typer.Option(help="Level of theory of the labels, written into the store.")] = None,
) -> None:
    """Write one file that large runs stream from."""
    from dpa1.data.pack import pack

    progress = Progress(None, "frames")
    frames, report = pack(data, store, parse_labels(label), parse_type_map(type_map), level, progress.update)
    progress.close()
    typer.echo(report.shortened())
    typer.echo(f"wrote {store}: {frames} frames, {store.stat().st_size / 1e6:.1f} MB")


def parse_labels(given: list[str] | None) -> dict[str, str]:
    """``--label energy=my_energy`` … → {"energy": "my_energy"}."""
    labels = {}
    for item in given or []:
        quantity, mark, key = item.partition("=")
        if not mark or not key:
            raise UserError(f"--label {item}: expected QUANTITY=KEY, e.g. energy=my_energy")
        labels[quantity.strip()] = key.strip()
    return labels


def parse_type_map(given: str | None) -> list[str] | None:
    """``--type-map "O H"`` → ["O", "H"]."""
    return [symbol for symbol in given.replace(",", " ").split() if symbol] if given else None


def page(facts: dict[str, Any]) -> list[str | Table]:
    """The facts of a check as lines and tables, in reading order."""
    from rich.table import Table

    atoms, neighbors = facts["atoms"], facts["neighbors"]
    shown: list[str | Table] = [_sources(facts["sources"])]
    periodic = ", ".join(f"{n} {kind}" for kind, n in facts["periodicity"].items())
    shown.append(
        f"{facts['frames']} frames ({periodic}); {atoms['min']} to {atoms['max']} atoms, mean {atoms['mean']:.1f}, "
        f"{atoms['total']} in all"
    )
    shown.append(
        "labels: " + ", ".join(f"{label} {n} of {facts['frames']}" for label, n in facts["labels"].items() if n)
    )
    if facts["levels"]:
        shown.append("levels of theory: " + ", ".join(facts["levels"]))
    shown.append(
        f"neighbors within {neighbors['cutoff']:g} Å: mean {neighbors['mean']:.1f}, largest {neighbors['max']} "
        f"({neighbors['max_in']}), {neighbors['atoms_without']} atoms without any"
    )
    table = Table(title="elements and the composition fit")
    for name in ("element", "atoms", "frames", "energy per atom (eV)", "remark"):
        table.add_column(name, justify="left" if name in ("element", "remark") else "right")
    fit = {row["element"]: row for row in (facts["composition"] or {"elements": []})["elements"]}
    for element, row in facts["elements"].items():
        bias = f"{fit[element]['bias']:.4f}" if element in fit else "–"
        remark = fit[element]["remark"] if element in fit else ""
        table.add_row(element, str(row["atoms"]), str(row["frames"]), bias, remark)
    shown.append(table)
    if facts["composition"]:
        shown.append(f"composition fit: {facts['composition']['sentence']}")
    for worst in (facts["energy"] or {"worst": []})["worst"][:5]:
        shown.append(f"  far from the fit: {worst['frame']}, {1e3 * worst['residual']:+.0f} meV/atom")
    if facts["forces"]["largest"]:
        shown.append(f"forces: rms {facts['forces']['rms']:.3f} eV/Å per component; largest")
        shown += [f"  {f['size']:.2f} eV/Å at {f['frame']}, atom {f['atom']}" for f in facts["forces"]["largest"][:5]]
    if facts["contacts"]:
        shown.append("closest contacts")
        shown += [
            f"  {c['elements']} {c['distance']:.3f} Å in {c['frame']}, atoms {c['atoms'][0]} and {c['atoms'][1]}"
            for c in facts["contacts"][:5]
        ]
    same, other = facts["duplicates"]["same_energy"], facts["duplicates"]["other_energy"]
    shown.append(f"duplicates: {same} with the same energy, {other} with another")
    if facts["virial"]:
        shown.append(f"virial: {facts['virial']['sentence']}")
    shown.append(_forecast(facts["forecast"]))
    return shown


def _sources(sources: list[dict[str, Any]], most: int = 20) -> Table:
    from rich.table import Table

    table = Table(title="what was read, and which key was taken for which label")
    for name in ("source", "format", "frames", "energy", "forces", "virial / stress"):
        table.add_column(name, overflow="fold", justify="right" if name == "frames" else "left")
    for source in sources[:most]:
        taken = source["taken"]
        virial = [*taken.get("virial", {}), *(f"{key} (stress)" for key in taken.get("stress", {}))]
        table.add_row(
            source["source"], source["format"], str(source["frames"]), ", ".join(taken.get("energy", {})),
            ", ".join(taken.get("forces", {})), ", ".join(virial),
        )  # fmt: skip
    if len(sources) > most:
        table.add_row(f"… {len(sources) - most} more", "", str(sum(s["frames"] for s in sources[most:])), "", "", "")
    return table


def _forecast(facts: dict[str, Any]) -> str:
    sizes = ", ".join(
        f"{size} {row['seconds_per_epoch']:.3g} s per epoch and {row['MB_per_1000_atoms_in_batch']:.3g} MB per 1000 atoms"
        for size, row in facts["sizes"].items()
    )
    return (
        f"forecast (within a factor of three): {facts['frames_MB']:.3g} MB for the frames, "
        f"{facts['neighbor_lists_MB']:.3g} MB for their neighbor lists, {facts['packed_store_MB']:.3g} MB packed; "
        f"training on this processor: {sizes}"
    )
