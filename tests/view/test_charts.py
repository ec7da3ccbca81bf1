"""Charts are laid out within their frame, and intervals that aren't known are left out."""

import math

import pytest

from xent_metrics import plots
from xent_metrics.view import charts
from xent_metrics.view.charts import Point, Series, chart


def points(*numbers, half=0.5):
    return [Point(x, y, y - half, y + half, f"at {x}") for x, y in numbers]


def test_everything_drawn_is_inside_of_the_frame():
    drawn = chart([Series("a", points((0, 1), (1000, 2)))], title="t", x_label="x", unit="u")
    [line] = drawn.lines
    for dot in line.dots:
        assert drawn.left < dot.x < drawn.right
        assert drawn.top < dot.high < dot.y < dot.low < drawn.bottom
    assert all(drawn.left <= tick.at <= drawn.right for tick in drawn.x_ticks)
    assert all(drawn.top <= tick.at <= drawn.bottom for tick in drawn.y_ticks)
    assert [tick.label for tick in drawn.x_ticks] == ["0", "200", "400", "600", "800", "1000"]


def test_the_scale_is_linear():
    drawn = chart([Series("", points((0, 0), (1, 1), (2, 2)))], title="", x_label="", unit="")
    first, middle, last = drawn.lines[0].dots
    assert middle.x == pytest.approx((first.x + last.x) / 2, abs=0.1)
    assert middle.y == pytest.approx((first.y + last.y) / 2, abs=0.1)


def test_marks_are_ranges_of_the_axis():
    drawn = chart([Series("", points((0, 0), (1, 1), (2, 2)))], title="", x_label="", unit="", marks=[(1, 2, "here")])
    [mark] = drawn.marks
    _, middle, last = drawn.lines[0].dots
    assert (mark.at, mark.title) == (middle.x, "here")
    assert mark.at + mark.width == pytest.approx(last.x)


def test_points_are_drawn_from_left_to_right_with_a_band():
    drawn = chart([Series("", points((2, 1), (1, 2)))], title="", x_label="", unit="")
    [line] = drawn.lines
    assert [dot.title for dot in line.dots] == ["at 1", "at 2"]
    assert line.band.startswith("M")
    assert line.band.endswith("Z")
    assert line.band.count("L") == 3  # two ends of two points


def test_unknown_intervals_and_values_are_left_out():
    nan = math.nan
    mixed = [Point(1, 2.0, nan, nan, "no interval"), Point(2, nan, nan, nan, "no value"), *points((3, 1))]
    [line] = chart([Series("", mixed)], title="", x_label="", unit="").lines
    assert [(dot.title, dot.low is None) for dot in line.dots] == [("no interval", True), ("at 3", False)]
    assert line.band == ""
    assert chart([Series("", [Point(1, nan, nan, nan, "")])], title="", x_label="", unit="") is None


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300, -5.0])
def test_equal_values_have_an_axis(value):
    drawn = chart([Series("", points((1, value), (2, value), half=0))], title="", x_label="", unit="")
    assert drawn.y_ticks
    assert all(math.isfinite(dot.y) for dot in drawn.lines[0].dots)


def test_places_may_have_labels():
    drawn = chart([Series("", points((0, 1), (1, 2)))], title="", x_label="", unit="", labels=["0", "1–3"])
    assert [(tick.label, tick.at) for tick in drawn.x_ticks] == [
        ("0", drawn.lines[0].dots[0].x),
        ("1–3", drawn.lines[0].dots[1].x),
    ]


def test_there_are_as_many_colours_as_in_plots():
    assert len(plots.SERIES) == charts.COLORS
