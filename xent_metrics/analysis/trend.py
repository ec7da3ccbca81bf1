"""Values of one metric over the checkpoints of a run: their slope, and the places where their level shifts.

Each is a coefficient of a least-squares fit, so a weighted sum of the checkpoints' values. It has two independent sources of
error: the scatter of checkpoints around the fit, and the choice of documents, which all checkpoints share. The variances
are added, and Student's quantile is taken for the degrees of freedom of both together (Welch and Satterthwaite).

A shift is looked for between any two neighbouring checkpoints: a cubic through those around it, with a step. The cubic keeps
curves of training from looking like steps. The strongest shift is taken, then the series is cut there and the parts are
searched again. p values are multiplied by the number of places that are looked at, in all series together (Bonferroni). A
single checkpoint that is off is no shift.

References: Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components; Andrews (1993), Tests for
Parameter Instability and Structural Change with Unknown Change Point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xent_metrics.analysis.scipy_stats import scipy_stats

__all__ = ["FEWEST_CHECKPOINTS", "Estimate", "Points", "Shift", "level_shifts", "places", "slope"]

FEWEST_CHECKPOINTS = 6
_LEAST_SIDE = 3  # checkpoints on either side of a shift: one alone may be an outlier
_FEWEST_FOR_CUBIC = 12  # checkpoints; a line through fewer
Array = np.ndarray[Any, Any]


class Points(NamedTuple):
    """Checkpoints in order: their steps and values, ``(K,)``, and their values without each document, ``(K, D)``."""

    steps: Array
    values: Array
    without: Array

    def part(self, begin: int, end: int) -> Points:
        """The checkpoints from `begin` up to, but not including, `end`."""
        return Points(*(each[begin:end] for each in self))


class Estimate(NamedTuple):
    """A coefficient with its standard error and degrees of freedom."""

    value: float
    error: float
    degrees: float

    def interval(self, confidence_level: float) -> tuple[float, float]:
        """± Student's quantile times the error."""
        half = float(scipy_stats().t.ppf(0.5 + confidence_level / 2, self.degrees)) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Shift:
    """A shift of the level between checkpoints `place` − 1 and `place`, which may have happened from `first` to `last`.

    `p_value` is that of this place alone, `corrected` the one for all places that were looked at.
    """

    place: int
    first: int
    last: int
    size: Estimate
    p_value: float
    corrected: float


def slope(points: Points) -> Estimate:
    """The slope of the least-squares line through the values, per step.

    >>> steps = np.arange(6.0)
    >>> found = slope(Points(steps, 3 - 0.1 * steps, np.repeat(3 - 0.1 * steps[:, None], 4, axis=1)))
    >>> round(found.value, 6)
    -0.1
    """
    return _coefficient(_line(points.steps), points)


def places(count: int) -> range:
    """The places of `count` checkpoints at which a shift is looked for; none if there are too few."""
    return range(_LEAST_SIDE, count - _LEAST_SIDE + 1) if count >= FEWEST_CHECKPOINTS else range(0)


def level_shifts(points: Points, *, window: int, tests: int, level: float = 0.05) -> list[Shift]:
    """The places at which the level shifts, in order.

    Args:
        points: the checkpoints in order.
        window: how many checkpoints on either side are looked at.
        tests: the number of places that are looked at in all series together.
        level: of the corrected p values.
    """
    return sorted(_search(points, 0, len(points.steps), window, tests, level), key=lambda shift: shift.place)


def _search(points: Points, begin: int, end: int, window: int, tests: int, level: float) -> Iterator[Shift]:
    """The strongest shift between two ends, then those on either side of it."""
    found = [begin + place for place in places(end - begin)]
    if not found:
        return
    ranges = [(max(begin, place - window), min(end, place + window)) for place in found]
    fits = [_step(points.part(*around), place - around[0]) for place, around in zip(found, ranges, strict=True)]
    p_values = _p_values(fits)
    best = int(np.argmin(p_values))
    corrected = min(1.0, float(p_values[best]) * tests)
    if corrected > level:
        return
    place, (low, high) = found[best], ranges[best]
    near = _as_likely(points.part(low, high), place - low, level)
    yield Shift(place, low + min(near), low + max(near), fits[best], float(p_values[best]), corrected)
    yield from _search(points, begin, place, window, tests, level)
    yield from _search(points, place, end, window, tests, level)


def _p_values(estimates: Sequence[Estimate]) -> Array:
    """Of the hypothesis that each is 0."""
    values, errors, degrees = np.array(estimates).T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * scipy_stats().t.sf(np.abs(values) / errors, degrees)
    chances: Array = np.where(errors > 0, found, values == 0)
    return chances


def _step(points: Points, place: int) -> Estimate:
    return _coefficient(_curve_with_step(points.steps, place), points)


def _as_likely(points: Points, best: int, level: float) -> list[int]:
    """The places whose fit is not significantly worse than the best one's, by the F test of one parameter."""
    columns = {place: _curve_with_step(points.steps, place) for place in places(len(points.steps))}
    squares = {place: _fit(each, points.values)[1] for place, each in columns.items()}
    degrees = len(points.steps) - columns[best].shape[1]
    bound = squares[best] * (1 + float(scipy_stats().f.ppf(1 - level, 1, degrees)) / degrees)
    return [best, *(place for place, square in squares.items() if square <= bound)]


def _line(steps: Array) -> Array:
    """The columns of a line, ``(K, 2)``; the last one's coefficient is its slope."""
    return np.stack([np.ones(len(steps)), steps - steps.mean()], axis=1)


def _curve_with_step(steps: Array, place: int) -> Array:
    """The columns of a cubic with a step, ``(K, 5)``, or of a line with one; the last one's coefficient is the step's height."""
    degree = 3 if len(steps) >= _FEWEST_FOR_CUBIC else 1
    around = (steps - steps.mean()) / np.ptp(steps)
    return np.column_stack([*(around**power for power in range(degree + 1)), np.arange(len(steps)) >= place])


def _fit(columns: Array, values: Array) -> tuple[Array, float]:
    """The weights of each coefficient, ``(columns, K)``, and the sum of squared residuals."""
    scale = np.abs(columns).max(axis=0)
    weights = np.linalg.pinv(columns / scale) / scale[:, None]
    residuals = values - columns @ (weights @ values)
    return weights, float(residuals @ residuals)


def _coefficient(columns: Array, points: Points) -> Estimate:
    """The last column's coefficient with its error from both sources, and from rounding, which is all that equal values have."""
    all_weights, squares = _fit(columns, points.values)
    weights, documents = all_weights[-1], points.without.shape[1]
    degrees = len(columns) - columns.shape[1], documents - 1
    without = weights @ points.without
    of_documents = float(((without - without.mean()) ** 2).sum()) * (documents - 1) / documents
    variances = squares / degrees[0] * float(weights @ weights), of_documents
    total = sum(variances)
    rounding = len(columns) * float(np.finfo(np.float64).eps * np.abs(weights) @ np.abs(points.values))
    parts = sum(variance**2 / free for variance, free in zip(variances, degrees, strict=True))
    return Estimate(
        float(weights @ points.values),
        math.hypot(math.sqrt(total), rounding),
        total**2 / parts if parts else float(min(degrees)),
    )
