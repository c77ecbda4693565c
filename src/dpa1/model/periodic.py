"""The periodic table: group and period of an element from its atomic number, and who stands nearest."""

from __future__ import annotations

from collections.abc import Iterable

NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)  # atomic numbers at which a period ends


def period(number: int) -> int:
    """1 to 7."""
    return next(k for k in range(1, 8) if number <= NOBLE[k])


def group(number: int) -> int | None:
    """1 to 18; None for the f-block (La–Yb and Ac–No; Lu and Lr stand in group 3, as IUPAC proposed in 2021)."""
    row = period(number)
    place = number - NOBLE[row - 1]
    if row == 1:
        return 1 if place == 1 else 18
    if place <= 2:
        return place
    if row <= 3:
        return place + 10
    if row <= 5:
        return place
    return None if place <= 16 else place - 14


def nearest(number: int, known: Iterable[int]) -> int:
    """The known element that stands nearest in the table: steps between groups and periods, then atomic number."""

    def distance(other: int) -> tuple[float, int]:
        steps = abs(_column(number) - _column(other)) + 0.9 * abs(period(number) - period(other))
        return steps, abs(number - other)

    return min(known, key=distance)


def _column(number: int) -> float:
    """The group; the f-block lies spread between groups 3 and 4."""
    column = group(number)
    return float(column) if column else 3.0 + (number - NOBLE[period(number) - 1]) / 20.0
