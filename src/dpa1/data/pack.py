"""``dpa1 data pack``: any readable data → one packed store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from dpa1.data.read import PathLike, iter_frames
from dpa1.data.report import LabelReport
from dpa1.data.store import write_store
from dpa1.frames import Frame


def pack(
    paths: PathLike | Sequence[PathLike],
    store: str | os.PathLike[str],
    labels: Mapping[str, str] | None = None,
    type_map: Sequence[str] | None = None,
    level: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, LabelReport]:
    """Stream frames into a new packed store; return how many, and what was read.

    ``level``: level of theory of all labels, when the frames do not say. ``progress``: called with the frames done.

    Raises
    ------
    UserError
        as ``dpa1.read`` does, or when the store exists; no file is left then.
    """
    report = LabelReport()

    def frames() -> Iterator[Frame]:
        for done, frame in enumerate(iter_frames(paths, labels, type_map=type_map, report=report), start=1):
            if progress is not None:
                progress(done)
            yield frame.replace(level=level) if level is not None and frame.level is None else frame

    return write_store(frames(), store, lambda: {"read": report.as_dict()}), report
