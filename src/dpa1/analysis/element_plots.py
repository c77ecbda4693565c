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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpa1.analysis.elements import ElementMap

# One colour per period (Okabe and Ito's palette, which most eyes can tell apart); the f-block has no group and is grey.
PERIODS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")
F_BLOCK = "#9a9a9a"
MANY = 30  # elements from which on the dense part is enlarged
FONT = 8.0


def group_colour(column: int | None) -> str:
    """From blue (group 1) over green to red (group 18)."""
    if column is None:
        return F_BLOCK
    import colorsys

    red, green, blue = colorsys.hls_to_rgb(0.64 * (1 - (column - 1) / 17), 0.45, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def element_figure(elements: ElementMap) -> Figure:
    """First against second component, coloured by period (left) and by group (right), a path through each period.

    Of many elements most lie in a small part of the picture: a second row shows that part enlarged.
    """
    points = _padded(elements.components, 2)
    dense = _dense(points)
    boxes = [_box(points)] if dense is None else [_box(points), dense]
    figure, axes = new_figure(len(boxes), 2, width=6.4, height=5.6, share=False)
    for k, axis in enumerate(axes):
        name = ("period", "group")[k % 2]
        _panel(axis, elements, points, name, boxes[k // 2], hidden=dense if k < 2 else None, legend=k < 2)
        axis.set_title(f"coloured by {name}" + (", the dashed part enlarged" if k > 1 else ""), fontsize=10)
        axis.set_xlabel(f"component 1{_share(elements, 0)}")
        axis.set_ylabel(f"component 2{_share(elements, 1)}")
    return figure


def _panel(
    axis: Axes, elements: ElementMap, points: np.ndarray, name: str, box: np.ndarray, hidden: np.ndarray | None,
    legend: bool,
) -> None:  # fmt: skip
    """Points, paths and symbols inside ``box``; no symbols inside ``hidden``, which is outlined."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    own, key = _colours(elements, name)
    for row, members in _paths(elements):
        colour = PERIODS[row - 1] if name == "period" else "0.75"
        axis.plot(*points[members].T, color=colour, linewidth=0.8, alpha=0.6, zorder=1)
    axis.scatter(points[:, 0], points[:, 1], c=own, s=36, zorder=2, edgecolors="white", linewidths=0.4)
    axis.set_xlim(*box[:, 0])
    axis.set_ylim(*box[:, 1])
    shown = _inside(points, box)
    if hidden is not None:
        shown &= ~_inside(points, hidden)
    for k, shift in zip(
        np.flatnonzero(shown).tolist(), _label_places(points, shown, elements.symbols, box), strict=True
    ):
        axis.annotate(
            elements.symbols[k], points[k], xytext=shift, textcoords="offset points", fontsize=FONT, color=own[k], zorder=3,
            ha="center", va="center",
        )  # fmt: skip
    if hidden is not None:
        left, low = hidden[0]
        wide, high = np.ptp(hidden, axis=0)
        axis.add_patch(
            Rectangle((left, low), wide, high, fill=False, edgecolor="0.3", linestyle="--", linewidth=0.8, zorder=4)
        )
    if not legend:
        return
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=text) for text, colour in key]
    axis.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside: no symbol is hidden


def _box(points: np.ndarray) -> np.ndarray:
    """(2, 2) lower left and upper right corner around points, with a margin."""
    margin = 0.06 * np.ptp(points, axis=0)
    margin[margin == 0] = 0.05
    return np.stack([points.min(0) - margin, points.max(0) + margin])


def _dense(points: np.ndarray) -> np.ndarray | None:
    """The box of the elements nearest to the median; None where there are few, or where it is no small part of the whole."""
    if len(points) < MANY:
        return None
    away = np.abs(points - np.median(points, axis=0))
    distance = (away / np.maximum(np.median(away, axis=0), 1e-12)).max(1)
    box = _box(points[distance <= np.quantile(distance, 0.75)])
    return box if np.ptp(box, axis=0).prod() < 0.4 * np.ptp(_box(points), axis=0).prod() else None


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(n,) bool."""
    inside: np.ndarray = ((points >= box[0]) & (points <= box[1])).all(1)
    return inside


def _label_places(
    points: np.ndarray, shown: np.ndarray, symbols: Sequence[str], box: np.ndarray
) -> list[tuple[float, float]]:
    """Shifts of the shown symbols from their points, in points of print: the side where a symbol covers least."""
    # The axes are about 5.5 × 4.9 inches large; a letter is about 0.65 of the font size wide.
    placed = (points - box[0]) / np.ptp(box, axis=0) * (396.0, 353.0)
    taken = [(place, np.array([3.0, 3.0])) for place in placed]
    shifts = []
    for k in np.flatnonzero(shown).tolist():
        half = np.array([0.325 * FONT * len(symbols[k]), 0.45 * FONT])
        right, up = float(half[0]) + 4.0, float(half[1]) + 3.0
        sides = [
            (right, up),
            (right, -up),
            (-right, up),
            (-right, -up),
            (0, up + 3),
            (0, -up - 3),
            (right + 1, 0),
            (-right - 1, 0),
        ]
        overlaps = []
        for side in sides:
            room = [half + size - np.abs(placed[k] + side - centre) for centre, size in taken]
            overlaps.append(sum(float(np.prod(r)) for r in room if (r > 0).all()))
        best = sides[int(np.argmin(overlaps))]
        taken.append((placed[k] + best, half))
        shifts.append((float(best[0]), float(best[1])))
    return shifts


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
