"""``dpa1 data check``: the page to read before spending a GPU-hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from dpa1.data.composition import fit_composition, isolated, non_periodic_atoms
from dpa1.data.dataset import Dataset, Sources, open_dataset
from dpa1.data.evidence import Duplicates, judge_virial, outliers
from dpa1.data.forecast import forecast
from dpa1.errors import UserError
from dpa1.frames import Frame
from dpa1.neighbors import find_neighbors

LARGE_FORCE = 30.0  # eV/Å
CLOSE = 0.55  # times the sum of the covalent radii
SEARCHED_ATOMS = 2_000_000
SHOWN = 10


@dataclass
class CheckResult:
    """What was found. ``facts`` is JSON-able; ``warnings`` deserve a look; ``errors`` make the data unusable."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**self.facts, "warnings": self.warnings, "errors": self.errors}


def check(
    sources: Sources,
    labels: Mapping[str, str] | None = None,
    type_map: Sequence[str] | None = None,
    cutoff: float = 6.0,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Look at every frame of the data.

    Parameters
    ----------
    cutoff: Å, for the neighbour numbers.  progress: called with (frames done, frames in all).

    Raises
    ------
    UserError
        when the data cannot be read at all.
    """
    dataset = open_dataset(sources, labels, type_map)
    result = CheckResult()
    scan = _Scan(dataset, cutoff)
    for i, frame in enumerate(dataset):
        scan.add(i, frame)
        if progress is not None:
            progress(i + 1, len(dataset))
    _contents(dataset, result)
    scan.report(result)
    _energies(dataset, result)
    _virials(dataset, scan, result)
    neighbors = result.facts["neighbors"]
    result.facts["forecast"] = forecast(dataset.table, neighbors["mean"], neighbors["mean_square"])
    return result


def _contents(dataset: Dataset, result: CheckResult) -> None:
    table = dataset.table
    result.facts["sources"] = dataset.report.as_dict()
    result.facts["frames"] = len(dataset)
    result.facts["atoms"] = {
        "total": int(table.n_atoms.sum()),
        "min": int(table.n_atoms.min()),
        "mean": float(table.n_atoms.mean()),
        "max": int(table.n_atoms.max()),
    }
    frames = np.bincount(table.z, minlength=119)
    atoms = np.bincount(table.z, weights=table.count, minlength=119)
    result.facts["elements"] = {
        e: {"atoms": int(atoms[atomic_numbers[e]]), "frames": int(frames[atomic_numbers[e]])} for e in table.elements
    }
    result.facts["labels"] = dataset.coverage
    result.facts["levels"] = list(table.levels)
    if not any(dataset.coverage[label] for label in ("energy", "forces", "virial")):
        keys = sorted(set().union(*(source.keys for source in dataset.report.sources)))
        there = f" (keys in the files: {', '.join(keys[:20])})" if keys else ""
        result.errors.append(f"no frame has an energy, forces or a virial{there}; name the keys with --label")
    for source in dataset.report.sources:
        for text, n in source.notes.items():
            result.warnings.append(f"{source.source}: {text} ({n} frames, first {source.first[text]})")


class _Scan:
    """One pass over the frames; neighbours of a random part when there are very many atoms."""

    def __init__(self, dataset: Dataset, cutoff: float) -> None:
        self.dataset, self.cutoff = dataset, cutoff
        share = min(1.0, SEARCHED_ATOMS / max(int(dataset.sizes.sum()), 1))
        self.searched = np.random.default_rng(0).random(len(dataset)) < share if share < 1 else None
        self.duplicates, self.kept = Duplicates(), list[Frame]()
        self.periodicity: Counter[str] = Counter()
        self.notes: dict[str, list[str]] = {}
        self.on_one_spot: list[str] = []
        self.neighbor_sum = self.neighbor_square = self.atoms = self.most = self.lonely = 0
        self.most_in = ""
        self.forces: list[tuple[float, str, int]] = []
        self.force_square = self.force_count = 0.0
        self.closest: dict[tuple[int, int], tuple[float, str, int, int]] = {}
        self.scaled: list[tuple[float, float, str, str]] = []

    def add(self, i: int, frame: Frame) -> None:
        self.periodicity[("molecule", "wire", "slab", "bulk")[int(frame.pbc.sum())]] += 1
        if frame.pbc.all() and np.linalg.det(frame.cell) < 0:
            self.periodicity["left-handed cells"] += 1
        self.duplicates.add(i, frame)
        self._forces(frame)
        if frame.virial is not None:
            size = np.abs(frame.virial).max()
            if np.abs(frame.virial - frame.virial.T).max() > 1e-2 * size + 1e-6:
                self._note("the virial is not symmetric", frame)
            if size == 0.0:
                self._note("the virial is exactly zero", frame)
        if self.searched is None or self.searched[i]:
            self._neighbors(frame)
            if frame.virial is not None and len(self.kept) < 20_000:
                self.kept.append(frame)

    def _note(self, text: str, frame: Frame) -> None:
        self.notes.setdefault(text, []).append(frame.name)

    def _forces(self, frame: Frame) -> None:
        if frame.forces is None:
            return
        size = np.linalg.norm(frame.forces, axis=1)
        atom = int(size.argmax())
        self.force_square += float((frame.forces**2).sum())
        self.force_count += frame.forces.size
        self.forces.append((float(size[atom]), frame.name, atom))
        if len(self.forces) > 1000:
            self.forces = sorted(self.forces, reverse=True)[:SHOWN]
        if size[atom] > LARGE_FORCE:
            self._note(f"a force exceeds {LARGE_FORCE:g} eV/Å", frame)
        if len(frame) > 1 and size[atom] == 0.0:
            self._note("all forces are exactly zero (a symmetric crystal, or a placeholder)", frame)
        if np.linalg.norm(frame.forces.sum(0)) > 0.1 * np.sqrt(len(frame)) + 1e-3 * size.sum():
            self._note("the forces do not sum to zero", frame)

    def _neighbors(self, frame: Frame) -> None:
        try:
            neighbors = find_neighbors(frame, self.cutoff)
        except UserError as error:
            self.on_one_spot.append(str(error))
            return
        counts = np.bincount(neighbors.centre, minlength=len(frame))
        self.neighbor_sum += int(counts.sum())
        self.neighbor_square += int((counts.astype(np.int64) ** 2).sum())
        self.atoms += len(frame)
        self.lonely += int((counts == 0).sum())
        if counts.max() > self.most:
            self.most, self.most_in = int(counts.max()), frame.name
        if len(neighbors.centre):
            self._contacts(frame, neighbors.centre, neighbors.neighbor, neighbors.distances(frame))

    def _contacts(self, frame: Frame, centre: np.ndarray, neighbor: np.ndarray, distance: np.ndarray) -> None:
        # The closest pair of each centre.
        begins = np.flatnonzero(np.concatenate([[True], centre[1:] != centre[:-1]]))
        least = np.repeat(np.minimum.reduceat(distance, begins), np.diff([*begins, len(centre)]))
        closest = np.flatnonzero(distance == least)
        closest = closest[np.unique(centre[closest], return_index=True)[1]]
        centre, neighbor, distance = centre[closest], neighbor[closest], distance[closest]
        z = np.sort(np.stack([frame.numbers[centre], frame.numbers[neighbor]]), axis=0)
        kinds = z[0] * 128 + z[1]
        order = np.lexsort((distance, kinds))
        for k in order[np.unique(kinds[order], return_index=True)[1]]:
            pair = (int(z[0, k]), int(z[1, k]))
            if distance[k] < self.closest.get(pair, (np.inf,))[0]:
                self.closest[pair] = (float(distance[k]), frame.name, int(centre[k]), int(neighbor[k]))
        scaled = distance / (covalent_radii[z[0]] + covalent_radii[z[1]])
        if scaled.min() < CLOSE:
            self._note(f"atoms are closer than {CLOSE:g} times the sum of their covalent radii", frame)

    def report(self, result: CheckResult) -> None:
        facts = result.facts
        facts["periodicity"] = dict(self.periodicity)
        mean = self.neighbor_sum / max(self.atoms, 1)
        facts["neighbors"] = {
            "cutoff": self.cutoff,
            "mean": mean,
            "mean_square": self.neighbor_square / max(self.atoms, 1),
            "max": self.most,
            "max_in": self.most_in,
            "atoms_without": self.lonely,
            "atoms_searched": self.atoms,
        }
        top = sorted(self.forces, reverse=True)[:SHOWN]
        facts["forces"] = {
            "rms": float(np.sqrt(self.force_square / self.force_count)) if self.force_count else None,
            "largest": [{"size": size, "frame": name, "atom": atom} for size, name, atom in top],
        }
        facts["contacts"] = [
            {"elements": f"{chemical_symbols[a]}–{chemical_symbols[b]}", "distance": d, "frame": name, "atoms": [i, j]}
            for (a, b), (d, name, i, j) in sorted(self.closest.items(), key=lambda item: item[1][0])
        ]
        same = [(a, b) for a, b, agree in self.duplicates.pairs if agree]
        differ = [(a, b) for a, b, agree in self.duplicates.pairs if not agree]
        facts["duplicates"] = {
            "same_energy": len(same),
            "other_energy": len(differ),
            "examples": [[self.dataset[a].name, self.dataset[b].name] for a, b in (differ + same)[:SHOWN]],
        }
        if differ:
            a, b = differ[0]
            result.warnings.append(
                f"one structure with two energies: {len(differ)} times, first {self.dataset[b].name} and "
                f"{self.dataset[a].name}; labels of different levels of theory, or an error"
            )
        if same:
            result.warnings.append(
                f"duplicates: {len(same)}, in which a frame repeats another; keep them out of the test set"
            )
        for text, names in self.notes.items():
            result.warnings.append(f"{text} in {len(names)} frame{'s' * (len(names) > 1)}, first {names[0]}")
        result.errors += self.on_one_spot[:SHOWN]
        if len(self.on_one_spot) > SHOWN:
            result.errors.append(f"… and {len(self.on_one_spot) - SHOWN} more frames with two atoms on one spot")


def _energies(dataset: Dataset, result: CheckResult) -> None:
    table = dataset.table
    if not dataset.coverage["energy"]:
        result.facts["energy"] = result.facts["composition"] = None
        return
    single = isolated(table)
    labelled = np.flatnonzero(~single & np.isfinite(table.energy))
    fitted = table.take(labelled) if len(labelled) else table
    fit = fit_composition(fitted)
    residuals = fit.residuals(fitted)
    numbers = labelled if len(labelled) else np.arange(len(table))
    strange = outliers(residuals)
    centre = float(np.nanmedian(residuals))
    per_source = {
        source: float(np.nanmedian(residuals[fitted.source == k]))
        for k, source in enumerate(fitted.sources)
        if np.isfinite(residuals[fitted.source == k]).any()
    }
    result.facts["energy"] = {
        "per_atom": {"min": float(np.nanmin(fitted.energy / fitted.n_atoms)),
                     "max": float(np.nanmax(fitted.energy / fitted.n_atoms))},
        "residual_rms": fit.rms,
        "median_residual_by_source": per_source,
        "outliers": len(strange),
        "worst": [{"frame": dataset[int(numbers[k])].name, "residual": float(residuals[k]) - centre}
                  for k in strange[:SHOWN]],
        "isolated_atoms": non_periodic_atoms(table),
    }  # fmt: skip
    result.facts["composition"] = {
        "rank": fit.rank,
        "elements": [
            dict(zip(("element", "atoms", "frames", "bias", "remark"), row, strict=True)) for row in fit.rows()
        ],
        "tied": [list(group) for group in fit.tied],
        "sentence": fit.sentence(),
    }
    if len(strange):
        k = strange[0]
        result.warnings.append(
            f"energy far from what the composition explains: {len(strange)} of {len(fitted)} frames, worst "
            f"{dataset[int(numbers[k])].name} with {1e3 * (float(residuals[k]) - centre):+.0f} meV/atom"
        )
    if fit.tied:
        result.warnings.append(
            f"the compositions do not determine every element's energy: {fit.groups()} not by themselves; "
            "relative energies of other compositions will be arbitrary"
        )


def _virials(dataset: Dataset, scan: _Scan, result: CheckResult) -> None:
    if not dataset.coverage["virial"]:
        result.facts["virial"] = None
        return
    verdict = judge_virial(scan.kept)
    result.facts["virial"] = verdict
    if verdict["verdict"] in ("wrong sign", "wrong unit"):
        result.warnings.append(f"virial or stress: {verdict['sentence']}; see the conventions in docs/data.md")
