"""Distillation: a layer-free student trained on a teacher's labels, so that a large accurate model becomes a fast one."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from ase.io import write

from dpa1.analysis.evaluate import evaluate
from dpa1.config.run import config_from
from dpa1.data.dataset import Dataset, ListDataset
from dpa1.data.overlap import overlap
from dpa1.data.read import iter_frames
from dpa1.errors import RunError, UserError
from dpa1.frames import Frame, from_ase, make_frame, to_ase, voigt_to_matrix
from dpa1.interop.load import load_potential
from dpa1.model.inference import check_elements
from dpa1.model.potential import Potential
from dpa1.workflow import train

if TYPE_CHECKING:
    from dpa1.training.run import RunResult

FEWEST = 10
HELD_BACK = 0.1  # of the structures, whose copies are left out of training, too
TIMED_ATOMS, REPEATS = 200, 5
LONGEST = 60.0  # s after which timing ends, for a teacher that takes minutes for a structure


@dataclass(frozen=True)
class Distilled:
    """A student and what became of the teacher's accuracy and cost.

    Attributes
    ----------
    model: path of the student.  run: its training run.
    against_teacher: errors of the student, as ``evaluate`` gives them, on structures held back, labelled by the teacher.
    teacher, student: errors of both against the labels the structures came with; empty without such labels.
    seconds: ``teacher``, ``student`` and ``tabulated`` student → processor seconds per call for ``timed_atoms`` atoms.
    notes: what else there is to say: structures given twice, tables that could not be made.
    """

    model: Path
    run: RunResult
    against_teacher: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]
    seconds: dict[str, float]
    timed_atoms: int
    notes: tuple[str, ...] = ()


def distill(
    teacher: BaseCalculator | Potential | str | Path,
    structures: str | Path | Iterable[Frame | Atoms],
    *,
    output: str | Path = "distilled",
    size: str = "small",
    cutoff: float | None = None,
    augment: int = 0,
    rattle: float = 0.05,
    strain: float = 0.02,
    steps: int = 10_000,
    seed: int = 1,
    level: str | None = None,
    quiet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Distilled:
    """Label structures with a teacher and train a student without attention layers on them.

    Parameters
    ----------
    teacher: any ASE calculator, a potential, or a model file.
    structures: frames, ASE atoms or a path; those given twice count once. Their own labels are used for one thing only, to
        compare teacher and student with them.
    output: new run folder.
    size: of the student (``small``, ``base``, ``large``), always without attention layers.
    cutoff: Å; the teacher's when it is a potential, else 6.
    augment: copies of each structure, moved by a normal ``rattle`` (Å) and strained by up to ``strain``.
    level: level of theory of a teacher that holds several.
    progress: called with (structures labelled, structures to label).

    Raises
    ------
    UserError
        fewer than 10 different structures, an output folder with files, a teacher that is no calculator, a structure with an
        element that a teacher of this package does not know.
    RunError
        when the teacher fails on a structure, which is named, or its energy or forces are not finite.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already holds something; choose another --output")
    if min(augment, rattle, strain) < 0:
        raise UserError("augment, rattle and strain must not be negative")
    if augment and not (rattle or strain):
        raise UserError(
            "copies that are neither rattled nor strained teach nothing; give --rattle or --strain, or no copies"
        )
    frames = _frames(structures)
    calculator, potential = _calculator(teacher, level)
    if potential is not None:
        for frame in frames:
            check_elements(frame, potential)
    rest, held = _split(frames, seed)
    rng = np.random.default_rng([seed, 0xA06])
    copies = [_moved(frame, rng, rattle, strain) for frame in rest for _ in range(augment)]
    parts = {"train": [*rest, *copies], "test": list(held)}
    labelled = _labelled(calculator, parts, progress or (lambda done, total: None))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in labelled.items():
        write(folder / f"{name}.xyz", [to_ase(frame) for frame in part], format="extxyz")
    virial = any(frame.virial is not None for frame in labelled["train"])  # frames without a volume have none
    values = {
        "data": {name: str(folder / f"{name}.xyz") for name in labelled},
        "model": {
            "size": size,
            "attention_layers": 0,
            "cutoff": cutoff if cutoff is not None else potential.cutoff if potential else 6.0,
        },
        "training": {"steps": steps},
        "loss": {"virial": [0.1, 1.0]} if virial else {},
        "output": str(folder),
        "seed": seed,
    }
    run = train(config_from(values, "distillation"), quiet=quiet)
    own = [
        (mine, f.replace(level=None))
        for mine, f in zip(labelled["test"], held, strict=True)
        if (f.energy is not None or f.forces is not None) and (f.level is None or level is None or f.level == level)
    ]
    twice = len(frames) - len(rest) - len(held)
    notes = [f"{twice} of {len(frames)} structures were given twice and count once"] if twice else []
    result = _compared(run, calculator, potential is not None, labelled["test"], own, notes)
    (folder / "distilled.json").write_text(json.dumps(_record(result), indent=2) + "\n", encoding="utf-8")
    return result


def _split(frames: list[Frame], seed: int) -> tuple[Dataset, Dataset]:
    """The different structures, those for the student to learn and those held back."""
    data = ListDataset(frames)
    different = [k for first, k in overlap(data, data) if first == k]
    if len(different) < FEWEST:
        twice = f" ({len(frames)} with those given twice)" if len(different) < len(frames) else ""
        raise UserError(
            f"{len(different)} structures{twice} are too few to train and test a student; give at least {FEWEST}"
        )
    rest, held = data.subset(different).split(HELD_BACK, seed)
    if lonely := sorted(set(held.elements) - set(rest.elements)):
        raise UserError(
            f"{held[0].name}: no other structure has {', '.join(lonely)}, so it cannot be held back; give more with it"
        )
    return rest, held


def _labelled(
    calculator: BaseCalculator, parts: dict[str, list[Frame]], progress: Callable[[int, int], None]
) -> dict[str, list[Frame]]:
    """The same frames with the teacher's labels."""
    total = sum(map(len, parts.values()))
    found: dict[str, list[Frame]] = {name: [] for name in parts}
    for name, part in parts.items():
        for frame in part:
            found[name].append(label(calculator, frame))
            progress(sum(map(len, found.values())), total)
    return found


def _compared(
    run: RunResult,
    teacher: BaseCalculator,
    repeat: bool,
    test: list[Frame],
    own: list[tuple[Frame, Frame]],
    notes: list[str],
) -> Distilled:
    """The student next to its teacher: errors against it, those of both against ``own`` labels, and their speeds.

    own: (frame as the teacher labelled it, frame as given).  repeat: small structures are repeated for the timing.
    """
    student = load_potential(run.model)
    fast: dict[str, BaseCalculator] = {"teacher": teacher, "student": student.calculator()}
    try:
        fast["tabulated"] = student.calculator(tabulate=True)
    except RunError as error:
        notes = [*notes, f"no tables: {error}"]
    seconds, atoms = speeds(fast, test, repeat=repeat)
    against = _errors_of([mine for mine, _ in own], [frame for _, frame in own]) if own else {}
    mine = evaluate(student, [frame for _, frame in own]) if own else {}
    return Distilled(run.model, run, evaluate(student, test), against, mine, seconds, atoms, tuple(notes))


def _frames(structures: str | Path | Iterable[Frame | Atoms]) -> list[Frame]:
    if isinstance(structures, str | Path):
        return list(iter_frames(structures))
    if isinstance(structures, Atoms):
        raise UserError("one structure is too few to train and test a student; give a list")
    return [f if isinstance(f, Frame) else from_ase(f, source="structures", index=k) for k, f in enumerate(structures)]


def label(calculator: BaseCalculator, frame: Frame) -> Frame:
    """The frame with the calculator's energy, forces and, where it has a volume and the calculator can, virial."""
    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.calc = calculator
    virial = None
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        if frame.pbc.all():
            with suppress(PropertyNotImplementedError, NotImplementedError):  # then the student learns without
                virial = -voigt_to_matrix(np.asarray(atoms.get_stress())) * frame.volume
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RunError(f"{frame.name}: the teacher failed ({type(error).__name__}: {reason})") from error
    if not (np.isfinite(energy) and np.isfinite(forces).all() and (virial is None or np.isfinite(virial).all())):
        raise RunError(f"{frame.name}: the teacher's energy, forces or stress are not finite; leave this structure out")
    return make_frame(
        frame.numbers, frame.positions, frame.cell, frame.pbc, energy=energy, forces=forces, virial=virial,
        source=frame.source, index=frame.index,
    )  # fmt: skip


def speeds(
    calculators: dict[str, BaseCalculator], frames: Sequence[Frame], *, repeat: bool = True
) -> tuple[dict[str, float], int]:
    """Median processor seconds per energy-and-force call, all calculators in turn; and for how many atoms.

    ``repeat``: a periodic structure of less than 200 atoms is repeated, which a calculator of another kind may not afford.
    """
    largest = to_ase(max(frames, key=len))
    largest.calc = None
    if repeat and largest.pbc.all() and len(largest) < TIMED_ATOMS:
        largest = largest.repeat(math.ceil((TIMED_ATOMS / len(largest)) ** (1 / 3)))
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in calculators}
    begun = time.perf_counter()
    for turn in range(REPEATS + 1):
        for name, calculator in calculators.items():
            atoms = largest.copy()
            atoms.positions += rng.normal(0.0, 1e-3, atoms.positions.shape)
            atoms.calc = calculator
            before = _processor_time()
            atoms.get_forces()
            if turn:  # the first call of each warms up
                found[name].append(_processor_time() - before)
        if turn and time.perf_counter() - begun > LONGEST:
            break
    return {name: statistics.median(values) for name, values in found.items()}, len(largest)


def _processor_time() -> float:
    """Seconds of this process and of the programs it called, as many ASE calculators do."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _calculator(teacher: Any, level: str | None) -> tuple[BaseCalculator, Potential | None]:
    potential = load_potential(teacher) if isinstance(teacher, str | Path) else teacher
    if isinstance(potential, Potential):
        potential.level_index(level)
        return potential.calculator(**({} if level is None else {"level": level})), potential
    if level is not None:
        raise UserError("--level belongs to a dpa1 model; leave it out for this teacher")
    if isinstance(potential, type):
        raise UserError(f"the teacher is the class {potential.__name__}; give a calculator: {potential.__name__}()")
    able = all(callable(getattr(potential, name, None)) for name in ("get_potential_energy", "get_forces"))
    if not able or isinstance(potential, Atoms):
        raise UserError(f"the teacher is {type(potential).__name__}, no ASE calculator")
    return potential, None


def _moved(frame: Frame, rng: np.random.Generator, rattle: float, strain: float) -> Frame:
    """A copy that is sheared and strained where it is periodic, and rattled."""
    change = np.eye(3) + (_symmetric(rng.uniform(-strain, strain, (3, 3))) if frame.pbc.all() else 0.0)
    positions = frame.positions @ change + rng.normal(0.0, rattle, frame.positions.shape)
    return frame.replace(positions=positions, cell=frame.cell @ change, energy=None, forces=None, virial=None)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)


def _errors_of(predicted: Sequence[Frame], labelled: Sequence[Frame]) -> dict[str, float]:
    """RMSE of energy (eV/atom) and forces (eV/Å) of one set of labels against another, NaN where there are none."""
    pairs = list(zip(predicted, labelled, strict=True))
    energy = [(p.energy - t.energy) / len(t) for p, t in pairs if p.energy is not None and t.energy is not None]
    force = [(p.forces - t.forces).ravel() for p, t in pairs if p.forces is not None and t.forces is not None]
    return {
        "energy_rmse": float(np.sqrt(np.mean(np.square(energy)))) if energy else float("nan"),
        "force_rmse": float(np.sqrt(np.mean(np.square(np.concatenate(force))))) if force else float("nan"),
    }


def table(result: Distilled) -> str:
    """Loss of accuracy and gain in speed."""
    rows = [("student against teacher", result.against_teacher)]
    if result.teacher:
        rows += [
            ("teacher against the given labels", result.teacher),
            ("student against the given labels", result.student),
        ]
    lines = [f"{'RMSE on structures held back':<34}{'energy meV/atom':>17}{'force meV/Å':>13}"]
    lines += [f"{n:<34}{1e3 * e['energy_rmse']:>17.4g}{1e3 * e['force_rmse']:>13.4g}" for n, e in rows]
    lines.append(f"{'processor time':<34}{'ms/call':>17}{'faster':>13}   ({result.timed_atoms} atoms)")
    first = result.seconds["teacher"]
    lines += [f"{n:<34}{1e3 * s:>17.4g}{first / max(s, 1e-9):>12.3g}×" for n, s in result.seconds.items()]
    return "\n".join([*lines, *result.notes, f"student: {result.model}"])


def _record(result: Distilled) -> dict[str, Any]:
    """What ``distilled.json`` holds: errors in eV/atom and eV/Å (null where there are none), processor seconds."""
    errors = {"student_against_teacher": result.against_teacher, "teacher": result.teacher, "student": result.student}
    keys = ("energy_rmse", "force_rmse")
    return {
        **{name: {k: e[k] if math.isfinite(e[k]) else None for k in keys} for name, e in errors.items() if e},
        "seconds_per_call": result.seconds,
        "timed_atoms": result.timed_atoms,
        "notes": result.notes,
    }
