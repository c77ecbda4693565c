"""Self-contained pages: texts, tables, pictures and scenes one can turn, in one HTML file that opens offline.

The page forbids itself every load (Content-Security-Policy), so it shows the same with and without a network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa1.container import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows under a head; ``text`` names the columns that are set to the left."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    text: Sequence[int] = (0,)


@dataclass(frozen=True)
class Scene:
    """Points (x, y, z, radius, colour, label, title) and lines (x, y, z, x, y, z, colour) that can be turned.

    ``key``: (text, colour) of what the colours mean.
    """

    caption: str
    points: Sequence[Sequence[Any]]
    lines: Sequence[Sequence[Any]] = ()
    key: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Section:
    """One part of a page, in this order; what is empty does not appear.

    Attributes
    ----------
    images: as ``image`` makes them.  details: (title, text) that unfold.  large: scenes as wide as the page.
    """

    title: str
    texts: Sequence[str] = ()
    images: Sequence[str] = ()
    tables: Sequence[Table] = ()
    scenes: Sequence[Scene] = ()
    details: Sequence[tuple[str, str]] = ()
    large: bool = False


def image(figure: Figure) -> str:
    """A picture as a data address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def write_page(
    path: str | Path,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    tiles: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Write the page, replacing it atomically; every text is escaped. ``tiles``: (name, value, unit) at the top."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("dpa1.analysis"), autoescape=True, undefined=StrictUndefined)
    own = {
        name: Markup(environment.loader.get_source(environment, file)[0])  # type: ignore[union-attr]
        for name, file in (("style", "style.css"), ("script", "scene.js"))
    }
    text = environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, tiles=tiles, **own
    )
    # A file name of other bytes than UTF-8 reaches Python as text that cannot be encoded.
    replace_file(Path(path), text.encode("utf-8", "backslashreplace"))
