"""The composition fit: which energy per atom of each element explains the total energies best, and what it cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from dpa1.data.dataset import Dataset
from dpa1.data.table import FrameTable, table_of
from dpa1.errors import UserError
from dpa1.frames import Frame

_CHUNK = 8192
_TOLERANCE = 1e-10  # eigenvalues of the scaled normal matrix below this share of the largest count as zero


@dataclass(frozen=True)
class CompositionFit:
    """Result of ``fit_composition``.

    Attributes
    ----------
    elements: (E,) symbols.  bias: (E,) eV per atom; where several fit equally well, those nearest to the mean energy per atom.
    rank: number of independent combinations the frames determine (E when nothing is tied).
    tied: groups of elements whose biases cannot be told apart, e.g. (("H", "O"),) for water alone.
    tied_ranks: of each such group, how many independent combinations the frames determine.
    absent: elements without any frame; their bias is 0.
    fixed: elements whose bias was given.
    rms: eV/atom, of the residuals.  frames: number of frames with an energy.
    atoms, occurrences: (E,) how many atoms of the element, in how many frames.
    """

    elements: tuple[str, ...]
    bias: np.ndarray
    rank: int
    tied: tuple[tuple[str, ...], ...]
    tied_ranks: tuple[int, ...]
    absent: tuple[str, ...]
    fixed: tuple[str, ...]
    rms: float
    frames: int
    atoms: np.ndarray
    occurrences: np.ndarray

    def residuals(self, table: FrameTable) -> np.ndarray:
        """(F,) eV/atom: energy per atom minus what the composition explains; NaN without an energy."""
        lookup = np.zeros(119)
        lookup[[atomic_numbers[e] for e in self.elements]] = self.bias
        explained = np.bincount(table.owner(), weights=lookup[table.z] * table.count, minlength=len(table))
        return (table.energy - explained) / table.n_atoms

    def rows(self) -> list[tuple[str, int, int, float, str]]:
        """(element, atoms, frames, bias, remark) per element, for a table."""
        remarks = dict.fromkeys(self.absent, "no energy with it") | dict.fromkeys(self.fixed, "fixed")
        remarks |= dict.fromkeys((element for group in self.tied for element in group), "not by itself")
        return [
            (e, int(self.atoms[i]), int(self.occurrences[i]), float(self.bias[i]), remarks.get(e, ""))
            for i, e in enumerate(self.elements)
        ]

    def table(self, value: str = "bias") -> str:
        """Plain text: one line per element, then what is tied. ``value``: what the numbers are called."""
        lines = [f"{'element':<8}{'atoms':>9}{'frames':>9}{value + ' (eV)':>15}"]
        lines += [f"{e:<8}{a:>9}{f:>9}{b:>15.4f}  {r}".rstrip() for e, a, f, b, r in self.rows()]
        return "\n".join([*lines, self.sentence()])

    def sentence(self) -> str:
        """Rank and ties in one line."""
        free = len(self.elements) - len(self.absent) - len(self.fixed)
        text = f"rank {self.rank} of {free}, residual {1e3 * self.rms:.1f} meV/atom over {self.frames} frames"
        if self.tied:
            text += (
                f"; not determined separately: {self.groups()}; add frames of another composition, or isolated atoms"
            )
        return text

    def groups(self) -> str:
        """The tied groups, e.g. "H, O (rank 1 of 2)"."""
        pairs = zip(self.tied, self.tied_ranks, strict=True)
        return "; ".join(f"{', '.join(group)} (rank {rank} of {len(group)})" for group, rank in pairs)


def fit_composition(
    data: Dataset | FrameTable | Sequence[Frame] | tuple[np.ndarray, np.ndarray],
    elements: Sequence[str] | None = None,
    ridge: float = 0.0,
    fixed: Mapping[str, float] | None = None,
    weights: np.ndarray | None = None,
) -> CompositionFit:
    """Least squares of energies per atom on composition, streamed through the normal equations.

    Parameters
    ----------
    data: a dataset, its table, frames, or (counts (F, E), energies (F,)) with ``elements`` naming the columns.
    elements: symbols in the order of the result; those that occur when not given.
    ridge: relative to the mean diagonal of the normal matrix, pulls all biases towards the mean energy per atom.
    fixed: element → eV, held; e.g. ``non_periodic_atoms(table)``.
    weights: of the squared residuals; for (counts, energies) only, of which all are finite.

    Raises
    ------
    UserError
        when no frame has an energy, or an element occurs that is not in ``elements``.
    """
    if isinstance(data, tuple):
        if elements is None:
            raise UserError("fit_composition: counts need elements that name their columns")
        names = tuple(elements)
        columns = (np.asarray(data[0], dtype=np.float64), np.asarray(data[1], dtype=np.float64))
        chunks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]] = lambda: [columns]  # noqa: E731
    else:
        table = data if isinstance(data, FrameTable) else data.table if isinstance(data, Dataset) else table_of(data)
        names = tuple(elements) if elements is not None else tuple(table.elements)
        chunks = lambda: _chunks(table, names)  # noqa: E731
    size, frames = len(names), 0
    normal, right = np.zeros((size, size)), np.zeros(size)
    atoms, occurrences = np.zeros(size), np.zeros(size)
    for counts, share, target in _labelled(chunks()):
        weighted = share if weights is None else share * weights[:, None]
        normal += weighted.T @ share
        right += weighted.T @ target
        atoms += counts.sum(0)
        occurrences += (counts > 0).sum(0)
        frames += len(counts)
    if frames == 0:
        raise UserError("no frame has an energy, so there are no energies per element to fit; name the energy key")
    bias, rank, tied, ranks = _solve(names, normal, right, atoms, ridge, dict(fixed or {}))
    # A second pass: differences of large sums would lose the residual.
    squared = sum(float(((target - share @ bias) ** 2).sum()) for _, share, target in _labelled(chunks()))
    held = dict(fixed or {})
    absent = tuple(e for e, a in zip(names, atoms, strict=True) if a == 0 and e not in held)
    return CompositionFit(
        names, bias, rank, tied, ranks, absent, tuple(e for e in names if e in held), float(np.sqrt(squared / frames)), frames,
        atoms.astype(np.int64), occurrences.astype(np.int64),
    )  # fmt: skip


def _labelled(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(counts, fractions, energies per atom) of the frames that have an energy."""
    for counts, energies in chunks:
        known = np.isfinite(energies) & (counts.sum(1) > 0)
        counts, energies = counts[known], energies[known]
        n = counts.sum(1)
        yield counts, counts / n[:, None], energies / n


def _solve(
    names: tuple[str, ...],
    normal: np.ndarray,
    right: np.ndarray,
    atoms: np.ndarray,
    ridge: float,
    fixed: dict[str, float],
) -> tuple[np.ndarray, int, tuple[tuple[str, ...], ...], tuple[int, ...]]:
    bias = np.array([fixed.get(e, 0.0) for e in names])
    held = np.array([e in fixed for e in names])
    free = np.flatnonzero((atoms > 0) & ~held)
    if not len(free):
        return bias, 0, (), ()
    matrix = normal[np.ix_(free, free)]
    vector = right[free] - normal[np.ix_(free, np.flatnonzero(held))] @ bias[held]
    start = float(vector @ np.ones(len(free)) / matrix.sum())
    values = np.linalg.eigvalsh(_scaled(matrix))
    rank = int((values > _TOLERANCE * values[-1]).sum())
    tied, ranks = _ties(matrix, [names[i] for i in free])
    rest = vector - matrix.sum(1) * start
    matrix = matrix + ridge * np.trace(matrix) / len(free) * np.eye(len(free))
    root = np.sqrt(np.diag(matrix))
    bias[free] = start + np.linalg.pinv(_scaled(matrix), rcond=_TOLERANCE, hermitian=True) @ (rest / root) / root
    return bias, rank, tied, ranks


def _scaled(matrix: np.ndarray) -> np.ndarray:
    """Unit diagonal, so that a rare element is not taken for an undetermined one."""
    root = np.sqrt(np.diag(matrix))
    return matrix / np.outer(root, root)


def _ties(matrix: np.ndarray, names: list[str]) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Groups of elements connected by the null space, and the rank of each."""
    values, vectors = np.linalg.eigh(_scaled(matrix))
    null = vectors[:, values <= _TOLERANCE * values[-1]]
    projector = np.abs(null @ null.T)
    groups: list[set[int]] = []
    for i in np.flatnonzero(np.diag(projector) > 1e-6):
        mates = set(np.flatnonzero(projector[i] > 1e-6).tolist()) | {int(i)}
        for group in [g for g in groups if g & mates]:
            groups.remove(group)
            mates |= group
        groups.append(mates)
    ranks = [len(group) - round(float(np.diag(projector)[list(group)].sum())) for group in groups]
    return tuple(tuple(names[k] for k in sorted(group)) for group in groups), tuple(ranks)


def _chunks(table: FrameTable, names: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    missing = sorted(set(table.elements) - set(names), key=lambda e: atomic_numbers[e])
    if missing:
        raise UserError(f"the frames hold {', '.join(missing)}, which is not among the elements {', '.join(names)}")
    column = np.full(119, -1)
    column[[atomic_numbers[e] for e in names]] = np.arange(len(names))
    starts = np.concatenate([[0], np.cumsum(table.kinds)])
    for first in range(0, len(table), _CHUNK):
        last = min(first + _CHUNK, len(table))
        entries = slice(starts[first], starts[last])
        counts = np.zeros((last - first, len(names)))
        owner = np.repeat(np.arange(last - first), table.kinds[first:last])
        counts[owner, column[table.z[entries]]] = table.count[entries]
        yield counts, table.energy[first:last]


def isolated(table: FrameTable) -> np.ndarray:
    """(F,) bool: frames of one atom that are not periodic in all directions."""
    return (table.n_atoms == 1) & (table.volume == 0)


def non_periodic_atoms(table: FrameTable) -> dict[str, float]:
    """Element → energy (eV) of its isolated atom, the first where there are several."""
    chosen = table.take(np.flatnonzero(isolated(table) & np.isfinite(table.energy)))
    found: dict[str, float] = {}
    for z, energy in zip(chosen.z.tolist(), chosen.energy.tolist(), strict=True):
        found.setdefault(chemical_symbols[z], energy)
    return found
