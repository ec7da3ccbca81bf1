"""Slopes and shifts of a series of values, against plain formulas and on made-up series with known shifts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xent_metrics.analysis.trend import FEWEST_CHECKPOINTS, Points, level_shifts, places, slope

CURVES = {
    "flat": lambda steps: 0 * steps,
    "exponential": lambda steps: 2 * np.exp(-steps / 400),
    "power law": lambda steps: 4 * (10 + steps / 10) ** -0.3,
}


def made_up(seed, count=50, documents=20, curve="flat", nights=0.01, within=0.03):
    """Values ``(K, D)`` of documents that scatter with the checkpoint and by themselves."""
    rng, steps = np.random.default_rng(seed), np.arange(count) * 10.0
    values = 3 + rng.gamma(4, 0.25, size=documents) + within * rng.normal(size=(count, documents))
    return steps, values + nights * rng.normal(size=(count, 1)) + CURVES[curve](steps)[:, None]


def points(steps, values):
    return Points(steps, values.mean(axis=1), (values.sum(axis=1, keepdims=True) - values) / (values.shape[1] - 1))


def shifts(steps, values, tests=1000):
    return level_shifts(points(steps, values), window=20, tests=tests)


def test_the_slope_is_that_of_least_squares_with_both_errors():
    steps, values = made_up(0)
    found, plain = slope(points(steps, values)), stats.linregress(steps, values.mean(axis=1))
    each = np.array([stats.linregress(steps, column).slope for column in values.T])  # the slope is the mean of these
    assert found.value == pytest.approx(plain.slope)
    assert found.error**2 == pytest.approx(plain.stderr**2 + stats.sem(each) ** 2)
    low, high = found.interval(0.95)
    assert (low + high) / 2 == pytest.approx(found.value)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, found.degrees) * found.error)
    assert 19 < found.degrees < 48 + 19  # Welch and Satterthwaite


def test_values_on_a_line_have_the_error_of_documents_alone():
    steps = np.arange(8.0)
    values = 3 - 0.1 * steps[:, None] + 0.02 * np.array([-1.0, 0, 1]) * steps[:, None]
    found = slope(points(steps, values))
    assert found.value == pytest.approx(-0.1)
    assert found.error == pytest.approx(0.02 / np.sqrt(3))
    assert found.degrees == pytest.approx(2)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_without_a_shift_raise_no_alarm(curve):
    """Of 12 each; benchmarks/year.py has 19 more, six times as long."""
    for seed in range(12):
        assert shifts(*made_up(seed, curve=curve), tests=len(places(50))) == []


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("size", [0.15, -0.15])
def test_a_shift_is_found_where_it_is_with_its_size(curve, size):
    steps, values = made_up(1, curve=curve)
    values[30:] += size
    [found] = shifts(steps, values)
    assert (found.first, found.place, found.last) == (30, 30, 30)
    low, high = found.size.interval(0.95)
    assert low < size < high
    assert found.corrected == min(1, found.p_value * 1000) < 1e-3


def test_a_small_shift_has_a_range():
    ranges = []
    for seed in range(12):
        steps, values = made_up(seed, nights=0.02)
        values[25:] += 0.1
        ranges += [(found.first, found.last) for found in shifts(steps, values, tests=20)]
    assert len(ranges) > 5
    assert any(first < last for first, last in ranges)
    assert sum(first <= 25 <= last for first, last in ranges) >= len(ranges) - 1


@pytest.mark.parametrize("sizes", [(0.2, -0.3), (0.3, -0.2)])
def test_two_shifts_are_found_one_by_one(sizes):
    """The stronger one first, and the other on either side of it."""
    steps, values = made_up(2, count=80)
    values[20:] += sizes[0]
    values[60:] += sizes[1]
    assert [found.place for found in shifts(steps, values)] == [20, 60]


def test_one_checkpoint_that_is_off_is_no_shift():
    for place in (1, 3, 11, 25, 48):
        steps, values = made_up(3)
        values[place] += 0.3
        assert shifts(steps, values, tests=len(places(50))) == []


def test_a_shift_that_few_documents_make_is_none():
    """The documents scatter more than the step is high: others might not have it."""
    steps, values = made_up(4)
    values[25:, 0] += 3.0
    assert np.diff(values.mean(axis=1)).max() > 0.1
    assert shifts(steps, values) == []


@pytest.mark.parametrize("value", [0.0, 2.0, 0.1, 1e9 / 3])
def test_values_that_never_change_have_no_shift(value):
    """What rounding leaves of them is none."""
    steps, values = np.arange(20.0), np.full((20, 5), value)
    assert shifts(steps, values, tests=1) == []
    assert slope(points(steps, values)).value == pytest.approx(0, abs=1e-12 * value)


def test_few_checkpoints_are_not_searched():
    assert list(places(FEWEST_CHECKPOINTS - 1)) == []
    assert list(places(FEWEST_CHECKPOINTS)) == [3]
    steps, values = made_up(0, count=8, nights=0.001, within=0.001)
    values[4:] += 1
    assert [found.place for found in shifts(steps, values, tests=5)] == [4]
