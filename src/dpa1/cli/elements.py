"""``dpa1 elements``: how the type embedding arranges the elements."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.terminal import check_new, draw, to_json
from dpa1.errors import UserError

if TYPE_CHECKING:
    from dpa1.analysis.elements import ElementMap

ABOUT = (
    "Principal components of the type embedding: the output of the type-embedding net, one vector per trained element, "
    "centred, not scaled."
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("elements")(elements_command)


def elements_command(
    model: Annotated[Path, typer.Argument(help="Model file: .dpa1, or DeePMD-kit's .dp .yaml .pt .pth.")],
    output: Annotated[
        Path | None, typer.Option(help="New folder for elements.csv, elements.json, elements.png and elements.html.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Another model, for instance of another seed: is the arrangement alike? Give it repeatedly."),
    ] = None,
    permutations: Annotated[int, typer.Option(min=99, help="Random deals behind each p-value.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of these deals.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """The periodic table as the model sees it: principal components of the elements, and what they know of it."""
    if output is not None:
        check_new(output)
    from dpa1.analysis import elements as analysis
    from dpa1.interop.load import load_potential

    found = analysis.element_map(load_potential(model))
    rows = [dict(row, model=str(model)) for row in analysis.measure(found, permutations, seed)]
    for path in compare or ():
        other = analysis.element_map(load_potential(path))
        rows += [dict(row, model=str(path)) for row in analysis.compare(found, other, permutations, seed)]
    result = {
        "model": str(model),
        "elements": list(found.symbols),
        "unseen": list(found.unseen),
        "explained_variance": found.explained.tolist(),
        "components": {s: values.tolist() for s, values in zip(found.symbols, found.components, strict=True)},
        "permutations": permutations,
        "seed": seed,
        "tests": rows,
    }
    texts = sentences(found, permutations, seed)
    written = [] if output is None else _write(output, found, result, texts)
    if json:
        typer.echo(to_json(result))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for text in texts:
        console.print(text, markup=False)
    table = Table(title="numbers against chance", title_justify="left")
    for k, column in enumerate(HEAD):
        table.add_column(column, justify="left" if k in TEXT else "right", overflow="fold")
    for row in rows:
        if "value" in row:
            table.add_row(*_cells(row))
    if table.row_count:
        console.print(table)
    for row in rows:
        if "reason" in row:
            console.print(f"{row['quantity']}, {row['method']}: not computed, {row['reason']}", markup=False)
    for name in written:
        typer.echo(f"wrote {output}/{name}")


HEAD = ("what", "how", "value", "chance", "p", "elements", "with")
TEXT = (0, 1, 6)


def sentences(found: ElementMap, permutations: int, seed: int) -> list[str]:
    """What was looked at, and what was not."""
    texts = [ABOUT, f"{len(found.symbols)} trained elements: {' '.join(found.symbols)}."]
    if found.unseen:
        texts.append(f"Left out, because the model has not seen them in training: {' '.join(found.unseen)}.")
    if found.given:
        texts.append("This model is told the electron configurations: part of the order was put in, not learned.")
    if len(found.explained):
        shares = ", ".join(f"{100 * share:.1f} %" for share in found.explained[:5])
        texts.append(f"Variance in the first components: {shares}.")
    else:
        texts.append("One element has no arrangement: there are no components, and nothing can be tested.")
    texts.append(
        f"p: share of {permutations:,} random deals of the vectors to the elements (seed {seed}) that do at least as well."
    )
    return texts


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["quantity"], row["method"], f"{row['value']:.3f}", f"{row['chance']:.3f}", f"{row['p']:.2g}",
        str(row["elements"]), row["model"] if row["quantity"] == "stability" else "",
    ]  # fmt: skip


def _write(output: Path, found: ElementMap, result: dict[str, Any], texts: Sequence[str]) -> list[str]:
    """The folder appears only when everything in it is complete."""
    from dpa1.analysis.element_plots import element_figure, element_page
    from dpa1.analysis.page import Table

    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be created ({error.strerror}); choose another with --output") from None
    try:
        found.write_csv(part / "elements.csv")
        (part / "elements.json").write_text(to_json(result) + "\n", encoding="utf-8")
        rows = [_cells(row) for row in result["tests"] if "value" in row]
        reasons = [
            f"{row['quantity']}, {row['method']}: not computed, {row['reason']}."
            for row in result["tests"]
            if "reason" in row
        ]
        draw(lambda: element_figure(found), part / "elements.png")
        element_page(
            found, part / "elements.html", title="The elements as the model sees them", subtitle=result["model"],
            texts=texts, tables=[Table(HEAD, rows, text=TEXT)] if rows else [], reasons=reasons,
        )  # fmt: skip
        names = sorted(path.name for path in part.iterdir())
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return names
