"""The map of the elements as a picture and as a page one can turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa1.analysis.page import Scene, Section, Table, write_page
from dpa1.analysis.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dpa1.analysis.elements import ElementMap

# One colour per period (Okabe and Ito's palette, which most eyes can tell apart); the f-block has no group and is grey.
PERIODS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")
F_BLOCK = "#9a9a9a"


def group_colour(column: int | None) -> str:
    """From blue (group 1) over green to red (group 18)."""
    if column is None:
        return F_BLOCK
    import colorsys

    red, green, blue = colorsys.hls_to_rgb(0.64 * (1 - (column - 1) / 17), 0.45, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def element_figure(elements: ElementMap) -> Figure:
    """First against second component, coloured by period (left) and by group (right), a path through each period."""
    from matplotlib.lines import Line2D

    figure, axes = new_figure(1, 2, width=6.4, height=5.6)
    points = _padded(elements.components, 2)
    for axis, name in zip(axes, ("period", "group"), strict=True):
        own, labels = _colours(elements, name)
        for row, members in _paths(elements):
            colour = PERIODS[row - 1] if name == "period" else "0.75"
            axis.plot(*points[members].T, color=colour, linewidth=0.8, alpha=0.6, zorder=1)
        axis.scatter(points[:, 0], points[:, 1], c=own, s=36, zorder=2, edgecolors="white", linewidths=0.4)
        for symbol, place, colour in zip(elements.symbols, points, own, strict=True):
            axis.annotate(symbol, place, xytext=(3, 3), textcoords="offset points", fontsize=8, color=colour, zorder=3)
        handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=text) for text, colour in labels]
        axis.legend(handles=handles, fontsize=7, ncols=1 if len(handles) < 8 else 2, framealpha=0.8)
        axis.set_title(f"coloured by {name}", fontsize=10)
        names = [f"component {k + 1}{_share(elements, k)}" for k in range(2)]
        axis.set_xlabel(names[0])
        axis.set_ylabel(names[1])
    return figure


def element_scenes(elements: ElementMap) -> list[Scene]:
    """The first three components one can turn: by period and by group."""
    points = _padded(elements.components, 3)
    size = 0.010 * float(np.linalg.norm(np.ptp(points, axis=0))) or 1.0
    lines = [
        [*_plain(points[a]), *_plain(points[b]), PERIODS[row - 1]]
        for row, members in _paths(elements)
        for a, b in pairwise(members)
    ]
    titles = [
        f"{symbol}, Z = {number}, period {row}, " + (f"group {column}" if column else "f-block")
        for symbol, number, row, column in zip(
            elements.symbols, elements.numbers, elements.periods, elements.groups, strict=True
        )
    ]

    def scene(name: str, colours: Sequence[str], key: Sequence[tuple[str, str]]) -> Scene:
        rows = [
            [*_plain(place), size, colour, symbol, text]
            for place, colour, symbol, text in zip(points, colours, elements.symbols, titles, strict=True)
        ]
        return Scene(f"Coloured by {name}; lines follow the periods.", rows, lines, key)

    return [scene(name, *_colours(elements, name)) for name in ("period", "group")]


def element_page(
    elements: ElementMap, path: str | Path, *, title: str, subtitle: str, tables: Sequence[Table], texts: Sequence[str],
    reasons: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the page: the first three components one can turn, by period and by group, and the numbers.

    texts: above the picture.  tables, reasons: numbers, and sentences on those that cannot be computed.
    """
    sections = [
        Section("First three principal components", texts, scenes=element_scenes(elements), large=True),
        Section("Numbers against chance", reasons, tables=tables),
    ]
    write_page(path, title, subtitle, sections)


def _colours(elements: ElementMap, name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Colour of every element by period or by group, and what the colours mean."""
    if name == "period":
        rows = sorted(set(elements.periods))
        return [PERIODS[row - 1] for row in elements.periods], [(f"period {row}", PERIODS[row - 1]) for row in rows]
    columns = sorted({column for column in elements.groups if column is not None})
    key = [(f"group {column}", group_colour(column)) for column in columns]
    key += [("f-block", F_BLOCK)] if None in elements.groups else []
    return list(map(group_colour, elements.groups)), key


def _share(elements: ElementMap, k: int) -> str:
    return f" ({100 * elements.explained[k]:.1f} % of the variance)" if k < len(elements.explained) else ""


def _paths(elements: ElementMap) -> list[tuple[int, list[int]]]:
    """Period → its elements by atomic number."""
    return [
        (row, [k for k, other in enumerate(elements.periods) if other == row]) for row in sorted(set(elements.periods))
    ]


def _padded(components: np.ndarray, width: int) -> np.ndarray:
    """Few elements span fewer directions: the missing ones are zero."""
    return np.pad(components[:, :width], ((0, 0), (0, max(0, width - components.shape[1]))))


def _plain(place: Any) -> list[float]:
    return [float(f"{x:.5g}") if math.isfinite(x) else 0.0 for x in place]
