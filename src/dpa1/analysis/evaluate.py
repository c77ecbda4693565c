"""Errors of a potential on labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase import Atoms

from dpa1.batch import make_batch
from dpa1.errors import RunError, UserError
from dpa1.frames import Frame, from_ase
from dpa1.model import memory
from dpa1.model.inference import check_elements, frozen_copy, pick_device
from dpa1.model.metrics import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from dpa1.model.potential import Potential

BATCH_ATOMS = 1000
WORST = 10

Observer = Callable[[Sequence[Frame], "dict[str, Tensor]", "Tensor"], None]


def evaluate(
    potential: Potential,
    data: str | Path | Frame | Iterable[str | Path | Frame | Atoms],
    *,
    batch_atoms: int = BATCH_ATOMS,
    level: str | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    observe: Observer | None = None,
) -> dict[str, Any]:
    """Compare predictions with every label the data has; nothing else than the errors stays in memory.

    Parameters
    ----------
    potential: a ``dpa1.Potential``.
    data: frames (or ASE ``Atoms`` with results), or paths of anything ``dpa1.read`` takes.
    batch_atoms: atoms evaluated together; changes speed and memory, not results.
    level: level of theory to compare with; for a potential of several levels that of each frame when not given.
    dtype, device: as for the calculator.
    observe: called with (frames, prediction, error terms of ``Metrics.update``) of each batch.

    Returns
    -------
    ``energy_rmse``, ``energy_mae`` (eV/atom), ``force_*`` (eV/Å), ``virial_*`` (eV/atom), ``stress_*`` (eV/Å³), NaN where
    no frame has the label; ``n_frames``, ``n_atoms``, ``per_element``, ``per_source``, ``worst`` as ``Metrics.result``,
    and ``per_level`` for a potential of several levels.

    Raises
    ------
    UserError
        for no frames, no labels at all, an element the model does not know (naming the frame), or a level it does not hold.
    RunError
        when a prediction is not finite (naming the frame).
    """
    if isinstance(potential, str | Path):
        raise UserError(f"{potential}: evaluate takes a potential, not a path; load it first: dpa1.load('{potential}')")
    place = potential.energy_bias.device if device is None else pick_device(device)
    model = frozen_copy(potential, dtype, place)
    metrics = Metrics(worst=WORST)
    model.level_index(level if level is not None else model.levels[0])  # an unknown name fails before any data are read
    for frames in _batches(_frames(data), model, batch_atoms, level):
        with memory.enough(f"the neighbors of {frames[0].name}", memory.FEWER, place):
            batch = make_batch(frames, model.cutoff, levels=model.levels if level is None else (), device=place)
        prediction = model.predict(batch, level=level)
        _check_finite(frames, prediction)
        sources = [frame.source or "frames" for frame in frames]
        levels = [level or str(frame.level) for frame in frames] if len(model.levels) > 1 else None
        terms = metrics.update(batch, prediction, sources, levels)
        if observe is not None:
            observe(frames, prediction, terms)
    result = metrics.result()
    if result["n_frames"] == 0:
        raise UserError("the data hold no frames; nothing to evaluate")
    if float(metrics.sums[:3, 0].sum()) == 0:
        raise UserError(
            f"none of the {result['n_frames']} frames has an energy, forces or a virial to compare with; "
            "use labelled data, or name the labels"
        )
    return result


def _frames(data: str | Path | Frame | Iterable[str | Path | Frame | Atoms]) -> Iterator[Frame]:
    if isinstance(data, str | Path | Frame | Atoms):
        data = [data]
    for index, item in enumerate(data):
        if isinstance(item, Frame):
            yield item
        elif isinstance(item, Atoms):
            yield from_ase(item, source="frames", index=index)
        else:
            from dpa1.data.read import iter_frames

            yield from iter_frames(item)


def _batches(frames: Iterable[Frame], model: Potential, batch_atoms: int, level: str | None) -> Iterator[list[Frame]]:
    """Consecutive frames, up to ``batch_atoms`` atoms (a larger frame stands alone)."""
    waiting: list[Frame] = []
    atoms = 0
    for frame in frames:
        check_elements(frame, model)
        if level is None:
            _check_level(frame, model)
        if waiting and atoms + len(frame) > batch_atoms:
            yield waiting
            waiting, atoms = [], 0
        waiting.append(frame)
        atoms += len(frame)
    if waiting:
        yield waiting


def _check_level(frame: Frame, model: Potential) -> None:
    """A frame that says its level of theory says one of the model's; where there are several it must."""
    unnamed = len(model.levels) == 1 and (frame.level is None or model.levels == ("default",))
    if not unnamed and frame.level not in model.levels:
        raise UserError(
            f"{frame.name}: its level of theory is {frame.level or 'not given'}, the model holds "
            f"{', '.join(model.levels)}; say which one to compare with by --level"
        )


def _check_finite(frames: Sequence[Frame], prediction: dict[str, Tensor]) -> None:
    finite = prediction["energy"].isfinite() & prediction["virial"].flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = frames[int(torch.nonzero(~finite)[0, 0])]
        raise RunError(f"{bad.name}: the model's energy or forces are not finite there; the model cannot describe it")
