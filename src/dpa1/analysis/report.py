"""``report.html``: one page about a run or an evaluation. Parts that there are no data for do not appear."""

from __future__ import annotations

import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa1.analysis.page import Section, Table, image, write_page
from dpa1.analysis.record import Recorder
from dpa1.analysis.worst import Worst, WorstFrame, scene
from dpa1.errors import UserError
from dpa1.units import SHOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from dpa1.data.dataset import Dataset
    from dpa1.model.potential import Potential

SAMPLE_FRAMES, SAMPLE_ATOMS = 500, 20_000  # of a data set that parity plots and worst frames are taken from


@dataclass(frozen=True)
class Evaluated:
    """Errors on some frames and what is drawn of them.

    Attributes
    ----------
    name: of these data.  result: as ``evaluate`` returns it.  points: as ``Recorder.points`` hold them.
    note: what these frames are, where they are not all.
    """

    name: str
    result: Mapping[str, Any]
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    worst: Sequence[WorstFrame] = ()
    note: str = ""


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluated: Sequence[Evaluated] = (),
    metrics: Path | None = None,
    sections: Sequence[Section] = (),
    data: Mapping[str, Dataset] | None = None,
    data_notes: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    config: str = "",
) -> None:
    """Write one self-contained page; pictures need matplotlib, and where it is missing the page says so.

    Parameters
    ----------
    evaluated: the first one is shown in the tiles at the top.
    metrics: ``metrics.csv`` of a run, for its curves.
    sections: further parts, after the curves: before and after a fine-tuning, forgetting…
    data: part (training, validation…) → data set.  data_notes: what else there is to say of them.
    facts: name and value, for the list at the end.
    config: text of the configuration.
    """
    missing: list[str] = []
    parts: list[Section] = []
    if metrics is not None:
        from dpa1.analysis.plots import learning_curve

        pictures = _drawn(lambda: learning_curve(metrics), missing)
        if pictures:
            parts.append(Section("Learning curves", images=pictures))
    parts += sections
    for item in evaluated:
        parts += _errors(item, missing)
    if data:
        parts.append(data_section(data, data_notes))
    about = [*facts, *versions()]
    parts.append(
        Section(
            "Configuration and versions",
            list(dict.fromkeys(missing)),
            tables=[Table(("", ""), about, text=(0, 1))],
            details=[("Configuration", config)] if config else [],
        )
    )
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    write_page(path, title, f"dpa1 {version('dpa1')} · {when}", parts, _tiles(evaluated))


def survey(
    potential: Potential, frames: Iterable[Any], name: str, *, result: Mapping[str, Any] | None = None, note: str = "",
    level: str | None = None,
) -> Evaluated:  # fmt: skip
    """Evaluate ``frames`` for a report; ``result`` replaces their errors by those of all frames, measured before."""
    from dpa1.analysis.evaluate import evaluate

    recorder, worst = Recorder(potential, io.StringIO(), level), Worst()

    def observe(*batch: Any) -> None:
        recorder.observe(*batch)
        worst.observe(*batch)

    found = evaluate(potential, frames, level=level, observe=observe)
    points = {quantity: sample.arrays() for quantity, sample in recorder.points.items()}
    return Evaluated(name, result or found, points, worst.frames(), note)


def sample(dataset: Dataset) -> tuple[np.ndarray, str]:
    """Numbers of labelled frames, spread evenly and few enough to be evaluated in a moment; what they are, where not all."""
    labelled = np.flatnonzero(np.any([dataset.table.has(label) for label in ("energy", "forces", "virial")], axis=0))
    total = len(labelled)
    most = max(1, min(SAMPLE_FRAMES, int(SAMPLE_ATOMS * total / max(1, int(dataset.sizes[labelled].sum())))))
    if total <= most:
        return labelled, ""
    chosen = labelled[np.unique(np.linspace(0, total - 1, most).round().astype(int))]
    return (
        chosen,
        f"Errors are those of all {total:,} frames; plots and worst frames are of {len(chosen):,} spread over them.",
    )


def data_section(data: Mapping[str, Dataset], notes: Sequence[str] = ()) -> Section:
    """Frames, atoms, labels, elements and sources of each part."""
    rows, texts = [], []
    for name, part in data.items():
        sizes = part.sizes
        labels = ", ".join(f"{label} {n:,}" for label, n in part.coverage.items() if n) or "none"
        atoms = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,}–{sizes.max():,}"
        rows.append([name, f"{len(part):,}", f"{int(sizes.sum()):,}", atoms, labels, " ".join(part.elements)])
    for name, part in data.items():
        shown = part.sources[:20]
        more = f" and {len(part.sources) - len(shown)} more" if len(part.sources) > len(shown) else ""
        texts.append(f"{name}: {', '.join(map(str, shown))}{more}")
    head = ("part", "frames", "atoms", "atoms per frame", "labels", "elements")
    return Section("Data", notes, tables=[Table(head, rows, text=(0, 4, 5))], details=[("Sources", "\n".join(texts))])


def versions() -> list[tuple[str, str]]:
    """Of what computed the numbers."""
    names = ("dpa1", "torch", "numpy", "ase")
    return [("Python", platform.python_version()), *((name, version(name)) for name in names)]


def error_table(results: Mapping[str, Mapping[str, Any]], title: str = "") -> Table:
    """RMSE and MAE of energy, forces, virial and stress, a row per name; what was not measured is a dash."""
    present = [q for q in SHOWN if any(np.isfinite(r.get(f"{q}_rmse", np.nan)) for r in results.values())]
    head = ["", "frames", *(f"{q} {kind.upper()}, {SHOWN[q][1]}" for q in present for kind in ("rmse", "mae"))]
    rows = [
        [
            name,
            f"{r['n_frames']:,}" if "n_frames" in r else "–",
            *(_number(r, q, kind) for q in present for kind in ("rmse", "mae")),
        ]
        for name, r in results.items()
    ]
    return Table(head, rows, title)


def _errors(item: Evaluated, missing: list[str]) -> list[Section]:
    result = item.result
    measured = [q for q in SHOWN if np.isfinite(result.get(f"{q}_rmse", np.nan))]
    rows = [[q, _number(result, q, "rmse"), _number(result, q, "mae"), SHOWN[q][1]] for q in measured]
    tables = [Table(("", "RMSE", "MAE", "unit"), rows, _frames(result["n_frames"]), text=(0, 3))]
    elements = result.get("per_element", {})
    if elements:
        rows = [
            [symbol, f"{row['n_atoms']:,}", _number(row, "force", "rmse"), _number(row, "force", "mae")]
            for symbol, row in elements.items()
        ]
        tables.append(Table(("element", "atoms", "RMSE, meV/Å", "MAE, meV/Å"), rows, "Forces per element"))
    if own := result.get("sources"):  # of a training run
        named = {f"{row['source']}, {row['level']}": {**row, "n_frames": row["frames"]} for row in own}
        tables.append(error_table(named, "Per source and level of theory"))
    for key, title in (("per_source", "Per source"), ("per_level", "Per level of theory")):
        if len(result.get(key, {})) > 1:
            tables.append(error_table(result[key], title))
    pictures: list[str] = []
    if any(len(pair[0]) for pair in item.points.values()):
        from dpa1.analysis.plots import parity

        pictures = _drawn(lambda: parity(item.points, result), missing)
    parts = [Section(f"Errors on {item.name} data", [item.note] if item.note else [], pictures, tables)]
    if item.worst:
        parts.append(Section(f"Worst frames of the {item.name} data", scenes=[scene(worst) for worst in item.worst]))
    return parts


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count:,} frames"


def _tiles(evaluated: Sequence[Evaluated]) -> list[tuple[str, str, str]]:
    if not evaluated:
        return []
    first = evaluated[0]
    return [
        (f"{quantity} RMSE", _number(first.result, quantity, "rmse"), f"{SHOWN[quantity][1]}, {first.name} data")
        for quantity in ("energy", "force", "virial")
        if np.isfinite(first.result.get(f"{quantity}_rmse", np.nan))
    ]


def _number(row: Mapping[str, Any], quantity: str, kind: str) -> str:
    value = SHOWN[quantity][0] * row.get(f"{quantity}_{kind}", np.nan)
    return f"{value:.4g}" if np.isfinite(value) else "–"


def _drawn(make: Callable[[], Figure], missing: list[str]) -> list[str]:
    """The picture; or a sentence in ``missing``, why there is none."""
    try:
        return [image(make())]
    except UserError as error:
        missing.append(f"A picture is missing: {error}")
        return []
