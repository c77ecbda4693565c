"""``dpa1 elements``: how the type embedding arranges the elements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpa1.cli.terminal import check_new, draw, new_folder, to_json

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
        typer.Option(
            help="Another model, for instance of another seed: are the arrangements alike? Give several: all pairs."
        ),
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

    paths = [model, *(compare or ())]
    maps = [analysis.element_map(load_potential(path)) for path in paths]
    found = maps[0]
    rows = [dict(row, model=str(model)) for row in analysis.measure(found, permutations, seed)]
    texts = sentences(found, permutations, seed)
    for (path, first), (other_path, second) in combinations(zip(paths, maps, strict=True), 2):
        pair = {"model": str(path), "with": str(other_path)}
        rows += [dict(row, **pair) for row in analysis.compare(first, second, permutations, seed)]
        texts += kinship(str(path), first, str(other_path), second)
    if compare:
        texts.append("Models: " + "; ".join(f"{k + 1} is {name}" for k, name in enumerate(_names(rows))) + ".")
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
    written = [] if output is None else _write(output, found, result, texts)
    if json:
        typer.echo(to_json(result))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for text in texts:
        console.print(text, markup=False)
    table = Table(title="numbers against chance", title_justify="left")
    head, cells = _table(rows)
    for k, column in enumerate(head):
        table.add_column(column, justify="left" if k in TEXT else "right", overflow="fold")
    for line in cells:
        table.add_row(*(escape(cell) for cell in line))
    if table.row_count:
        console.print(table)
    for row in rows:
        if "reason" in row:
            console.print(_not_computed(row), markup=False)
    for name in written:
        typer.echo(f"wrote {output}/{name}")


HEAD = ("what", "how", "value", "chance", "p", "elements")
PAIR = ("models",)
TEXT = (0, 1, 6)


def sentences(found: ElementMap, permutations: int, seed: int) -> list[str]:
    """What was looked at, and what was not."""
    from dpa1.analysis.elements import FEWEST

    many = f"{len(found.symbols)} trained element{'s' if len(found.symbols) > 1 else ''}"
    if not found.told:
        many = "All elements of the model, since the file does not say which of them were trained"
    texts = [ABOUT, f"{many}: {' '.join(found.symbols)}."]
    if found.unseen:
        texts.append(f"Left out, because the model has not seen them in training: {' '.join(found.unseen)}.")
    if found.given:
        texts.append("This model is told the electron configurations: part of the order was put in, not learned.")
    if len(found.explained):
        shares = ", ".join(f"{100 * share:.1f} %" for share in found.explained[:5])
        texts.append(f"Variance in the first components: {shares}.")
    else:
        texts.append("One element has no arrangement: there are no components, and nothing can be tested.")
    if len(found.symbols) < FEWEST:
        return texts
    texts.append(
        f"p: share of {permutations:,} random deals of the vectors to the elements (seed {seed}) that do at least as well."
    )
    return texts


def kinship(name: str, first: ElementMap, other_name: str, second: ElementMap) -> list[str]:
    """A warning where two models began from the same vectors, so that their likeness proves little."""
    if Path(first.base or name) == Path(second.base or other_name):
        return [
            f"{name} and {other_name} come from one model: their likeness shows what they began with, not stability."
        ]
    if first.seed is not None and first.seed == second.seed and not (first.base or second.base):
        return [
            f"{name} and {other_name} were trained with the same seed ({first.seed}) and may have begun from the same random "
            "vectors: part of their likeness may be that. Stability is shown by other seeds."
        ]
    return []


def _table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and cells of the numbers; the models are numbered where several are compared."""
    names = _names(rows)
    cells = [
        [
            row["quantity"], row["method"], f"{row['value']:.3f}", f"{row['chance']:.3f}", f"{row['p']:.2g}",
            str(row["elements"]), *([_models(row, names)] if len(names) > 1 else []),
        ]
        for row in rows
        if "value" in row
    ]  # fmt: skip
    return HEAD + (PAIR if len(names) > 1 else ()), cells


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every model of the tests once, in order."""
    return list(dict.fromkeys(row[key] for key in ("model", "with") for row in rows if key in row))


def _models(row: dict[str, Any], names: Sequence[str]) -> str:
    return " and ".join(str(names.index(row[key]) + 1) for key in ("model", "with") if key in row)


def _not_computed(row: dict[str, Any]) -> str:
    names = f" ({row['model']} and {row['with']})" if "with" in row else ""
    return f"{row['quantity']}, {row['method']}{names}: not computed, {row['reason']}"


def _write(output: Path, found: ElementMap, result: dict[str, Any], texts: Sequence[str]) -> list[str]:
    """Everything into a new folder; the names of the files."""
    from dpa1.analysis.element_plots import element_figure, element_page
    from dpa1.analysis.page import Table

    with new_folder(output) as part:
        found.write_csv(part / "elements.csv")
        (part / "elements.json").write_text(to_json(result) + "\n", encoding="utf-8")
        head, rows = _table(result["tests"])
        reasons = [f"{_not_computed(row)}." for row in result["tests"] if "reason" in row]
        draw(lambda: element_figure(found), part / "elements.png")
        element_page(
            found, part / "elements.html", title="The elements as the model sees them", subtitle=result["model"],
            texts=texts, tables=[Table(head, rows, text=TEXT)] if rows else [], reasons=reasons,
        )  # fmt: skip
        return sorted(path.name for path in part.iterdir())
