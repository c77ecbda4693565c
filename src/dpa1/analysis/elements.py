"""What the type embedding has learned about the elements: principal components, and numbers against chance.

Fed in are the rows of the type-embedding net's output, one vector per element: it is all that the other parts of the model
know of an element. The mean over the elements is taken away, because a shift common to all is taken up by the biases of
the next layers; nothing is scaled, because all components enter the same layers in the same units. An element without
training data still has its random initial vector and is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa1.errors import UserError
from dpa1.model.periodic import group, period

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

PERMUTATIONS = 10_000
RIDGE = 0.1  # penalty of the regression, in units of the mean variance of a component times the number of elements
FEWEST = 5  # elements below which chance cannot be told from structure: 4! orders give no p below 0.04


@dataclass(frozen=True)
class ElementMap:
    """The elements of one model in the space of its type embedding.

    Attributes
    ----------
    symbols, numbers: the E elements that were trained, by atomic number; ``unseen``: those that were not.
    vectors: (E, C) mean-centred type embeddings.
    components: (E, K) principal components, the one of largest variance first; K ≤ min(C, E − 1).
    explained: (K,) share of the variance in each.
    given: the net starts from electron configurations, so that part of the periodic table is put in, not learned.
    told: the file says which elements were trained; else they are all taken to be.
    seed, base: what the vectors began from, where it is known: the seed of a training run, the model that was fine-tuned.
    """

    symbols: tuple[str, ...]
    numbers: tuple[int, ...]
    unseen: tuple[str, ...]
    vectors: np.ndarray
    components: np.ndarray
    explained: np.ndarray
    given: bool = False
    told: bool = True
    seed: int | None = None
    base: str | None = None

    @property
    def groups(self) -> tuple[int | None, ...]:
        """1 to 18, None in the f-block."""
        return tuple(group(z) for z in self.numbers)

    @property
    def periods(self) -> tuple[int, ...]:
        """1 to 7."""
        return tuple(period(z) for z in self.numbers)

    def write_csv(self, path: str | Path) -> None:
        """A row per element: symbol, atomic number, group, period, principal components."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            names = [f"component_{k + 1}" for k in range(self.components.shape[1])]
            writer.writerow(["element", "atomic_number", "group", "period", *names])
            rows = zip(self.symbols, self.numbers, self.groups, self.periods, self.components, strict=True)
            for symbol, number, column, row, values in rows:
                writer.writerow([symbol, number, column or "", row, *(f"{value:.8g}" for value in values)])


def element_map(potential: Potential) -> ElementMap:
    """Principal components of the type embeddings of the elements ``potential`` was trained on."""
    import torch
    from ase.data import atomic_numbers

    with torch.no_grad():
        table = potential.descriptor.type_embedding().double().cpu().numpy()
    trained = set(potential.trained_elements)
    order = sorted(range(len(table)), key=lambda k: atomic_numbers[potential.elements[k]])
    chosen = [k for k in order if potential.elements[k] in trained]
    if not chosen:
        raise UserError("the model says that none of its elements was trained; there is nothing to show")
    vectors = table[chosen] - table[chosen].mean(0)
    left, values, _ = np.linalg.svd(vectors, full_matrices=False)
    most = min(vectors.shape[1], len(chosen) - 1)
    components = (left * values)[:, :most]
    # The sign of a component is free: its largest value counts upwards.
    components = components * np.sign(components[np.abs(components).argmax(0), np.arange(most)] if most else 1.0)
    total = float((values**2).sum())
    return ElementMap(
        symbols=tuple(potential.elements[k] for k in chosen),
        numbers=tuple(atomic_numbers[potential.elements[k]] for k in chosen),
        unseen=tuple(potential.elements[k] for k in order if potential.elements[k] not in trained),
        vectors=vectors,
        components=components,
        explained=values[:most] ** 2 / total if total else np.zeros(most),
        given=potential.config.electron_configuration,
        told="trained_elements" in potential.info,
        seed=potential.info.get("seed"),
        base=potential.info.get("finetuned", {}).get("base"),
    )


def measure(elements: ElementMap, permutations: int = PERMUTATIONS, seed: int = 0) -> list[dict[str, Any]]:
    """How much of the periodic table the embedding holds, each number next to what chance gives.

    Chance: the vectors are dealt out anew to the elements ``permutations`` times; p = (1 + number of deals that are at
    least as good) / (1 + permutations).

    - *nearest neighbour*: share of elements whose nearest other element is of the same period (group); an element that
      is alone in its period (group) cannot be right and is left out, as the f-block is for groups;
    - *ridge regression*: Q² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)² of period (group) as a number, ŷ and ȳ each without that element;
    - *next in the period*, *next in the group*: mean distance between neighbours in the periodic table, over that of
      all pairs; below 1 when the path through a period (group) is short.

    Returns
    -------
    rows of ``quantity``, ``method``, ``value``, ``chance`` (mean over the deals), ``p``, ``elements`` (how many took part);
    a row without ``value`` has ``reason``, why it cannot be computed.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for name, labels in (("period", elements.periods), ("group", elements.groups)):
        rows.append(_row(name, "nearest neighbour", *_neighbours(elements, labels, name), permutations, rng))
        rows.append(_row(name, "ridge regression", *_regression(elements, labels, name), permutations, rng))
        rows.append(_row(name, f"next in the {name}", *_path(elements, name), permutations, rng, smaller=True))
    return rows


def compare(
    first: ElementMap, second: ElementMap, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[dict[str, Any]]:
    """Whether two models arrange their common elements alike; rows as those of ``measure``.

    Both measures ignore rotation and scale of an embedding, which carry no meaning: *alignment* is the linear centred
    kernel alignment (Kornblith et al., arXiv 1905.00414), *distances* Spearman's rank correlation of all pairwise distances
    (Mantel's test). Chance: the elements of the second model are dealt out anew.
    """
    common = [symbol for symbol in first.symbols if symbol in second.symbols]
    rng = np.random.default_rng(seed)
    a, b = (e.vectors[[e.symbols.index(symbol) for symbol in common]] for e in (first, second))
    if reason := _too_few(a, "trained elements are common") or _too_few(b, "trained elements are common"):
        return [_row("stability", method, common, reason, permutations, rng) for method in ("alignment", "distances")]
    grams = [(x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b)]
    upper = np.triu_indices(len(common), 1)
    ranks = []
    for x in (a, b):
        square = np.zeros((len(common),) * 2)
        square[upper] = _ranks(_distances(x)[upper])
        ranks.append(square + square.T)

    def alignment(order: np.ndarray) -> float:
        return float((grams[0] * grams[1][np.ix_(order, order)]).sum() / np.prod([np.linalg.norm(g) for g in grams]))

    def distances(order: np.ndarray) -> float:
        return float(np.corrcoef(ranks[0][upper], ranks[1][np.ix_(order, order)][upper])[0, 1])

    return [
        _row("stability", "alignment", common, alignment, permutations, rng),
        _row("stability", "distances", common, distances, permutations, rng),
    ]


Statistic = Callable[[np.ndarray], float]  # of an order of the elements
Found = tuple[list[str], Statistic | str]  # the elements that take part; or why there is nothing to compute


def _row(
    quantity: str, method: str, taking_part: Sequence[str], statistic: Statistic | str, permutations: int,
    rng: np.random.Generator, smaller: bool = False,
) -> dict[str, Any]:  # fmt: skip
    row: dict[str, Any] = {"quantity": quantity, "method": method, "elements": len(taking_part)}
    if isinstance(statistic, str):
        return {**row, "reason": statistic}
    count = len(taking_part)
    value = statistic(np.arange(count))
    null = np.array([statistic(rng.permutation(count)) for _ in range(permutations)])
    slack = 1e-12 * max(1.0, abs(value))  # the same arrangement, summed in another order
    hits = int((null <= value + slack).sum() if smaller else (null >= value - slack).sum())
    chance = float(null.mean()) if permutations else float("nan")
    return {**row, "value": value, "chance": chance, "p": (1 + hits) / (1 + permutations)}


def _too_few(vectors: np.ndarray, what: str) -> str:
    """Why vectors cannot be tested, or nothing."""
    if len(vectors) < FEWEST:
        return f"{len(vectors)} {what}, at least {FEWEST} are needed"
    return "" if float(np.ptp(vectors, axis=0).max()) > 0 else "all elements have the same type embedding"


def _neighbours(elements: ElementMap, labels: Sequence[int | None], name: str) -> Found:
    counts = {label: labels.count(label) for label in labels}
    chosen = [k for k, label in enumerate(labels) if label is not None and counts[label] > 1]
    names = [elements.symbols[k] for k in chosen]
    known = np.array([labels[k] for k in chosen])
    vectors = elements.vectors[chosen]
    if reason := _too_few(vectors, f"trained elements share their {name} with another one"):
        return names, reason
    if len(set(known.tolist())) < 2:
        return names, f"all elements that could be compared are of the same {name}"
    distances = _distances(vectors)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(1)
    return names, lambda order: float((known[order][nearest] == known[order]).mean())


def _regression(elements: ElementMap, labels: Sequence[int | None], name: str) -> Found:
    chosen = [k for k, label in enumerate(labels) if label is not None]
    names = [elements.symbols[k] for k in chosen]
    known = np.array([labels[k] for k in chosen], dtype=float)
    x = elements.vectors[chosen]
    if reason := _too_few(x, f"trained elements have a {name}"):
        return names, reason
    if np.ptp(known) == 0:
        return names, f"all elements are of the same {name}"
    count = len(x)
    x = x - x.mean(0)
    gram = x.T @ x
    penalty = RIDGE * np.trace(gram) / len(gram)
    hat = 1.0 / count + x @ np.linalg.solve(gram + penalty * np.eye(len(gram)), x.T)
    # Leaving one out of a linear smoother: its residual over 1 − h (Hastie, Tibshirani, Friedman, Eq. 7.52).
    leave = (np.eye(count) - hat) / (1.0 - np.diag(hat))[:, None]
    spread = float((((known - known.mean()) * count / (count - 1)) ** 2).sum())
    return names, lambda order: 1.0 - float(((leave @ known[order]) ** 2).sum()) / spread


def _path(elements: ElementMap, along: str) -> Found:
    names = list(elements.symbols)
    if reason := _too_few(elements.vectors, "trained elements"):
        return names, reason
    pairs = _next(elements, along)
    if len(pairs) < 3:
        return (
            names,
            f"{len(pairs)} pairs of trained elements are next to each other in a {along}, at least 3 are needed",
        )
    distances = _distances(elements.vectors)
    mean = distances[np.triu_indices(len(names), 1)].mean()
    start, end = np.array(pairs).T
    return names, lambda order: float(distances[order[start], order[end]].mean() / mean)


def _next(elements: ElementMap, along: str) -> list[tuple[int, int]]:
    """Pairs of trained elements that are next to each other in a period or in a group."""
    if along == "period":
        after = {(row, z): k for k, (row, z) in enumerate(zip(elements.periods, elements.numbers, strict=True))}
        found = [(k, after.get((row, z + 1))) for (row, z), k in after.items()]
    else:
        below = {
            (row, column): k
            for k, (row, column) in enumerate(zip(elements.periods, elements.groups, strict=True))
            if column is not None
        }
        found = [(k, below.get((row + 1, column))) for (row, column), k in below.items()]
    return [(a, b) for a, b in found if b is not None]


def _distances(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values)
