"""Charts as SVG without scripts or inline styles: values with their intervals, over numbers or over labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Chart", "Point", "Series", "chart", "compact"]

WIDTH, HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 12, 52
COLORS = 6  # classes c0 to c5 in the style sheet


@dataclass(frozen=True)
class Point:
    """A value at a place, with its interval (nan without one) and the page of the run."""

    x: float
    value: float
    low: float
    high: float
    label: str
    href: str = ""


@dataclass(frozen=True)
class Series:
    """Points that a line connects."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A marked range of the x axis, in pixels, and what it says."""

    at: float
    width: float
    title: str


@dataclass(frozen=True)
class Dot:
    """A drawn point: its place, its interval's ends, what it says and where it leads to."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str
    href: str


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG paths of the band and of the line, and its dots."""

    name: str
    color: int
    band: str
    path: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class Chart:
    """All that the template draws."""

    title: str
    x_label: str
    unit: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    slanted: bool = field(default=False)
    marks: Sequence[Mark] = ()


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    unit: str,
    labels: Sequence[str] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
) -> Chart | None:
    """Lay a chart out; None if no point has a value.

    Args:
        series: each is a line with a band in a colour of its own; points without a finite value are left out.
        title: says to screen readers what is drawn.
        x_label: what the x axis is.
        unit: of the values.
        labels: names of the places 0, 1, 2 … of the x axis, in place of numbers.
        marks: ranges of the x axis from one number to another, and what they say.
    """
    shown = [Series(each.name, sorted(_finite(each.points), key=lambda point: point.x)) for each in series]
    points = [point for each in shown for point in each.points]
    if not points:
        return None
    ends = [end for point in points for end in (point.value, point.low, point.high) if math.isfinite(end)]
    x = _Axis(min(p.x for p in points), max(p.x for p in points), _LEFT, WIDTH - _RIGHT)
    y = _Axis(min(ends), max(ends), HEIGHT - _BOTTOM, _TOP)
    named = None if labels is None else [Tick(x.at(place), text) for place, text in enumerate(labels)]
    return Chart(
        title=title,
        x_label=x_label,
        unit=unit,
        x_ticks=x.ticks() if named is None else named,
        y_ticks=y.ticks(),
        lines=[_line(each, place % COLORS, x, y) for place, each in enumerate(shown)],
        slanted=labels is not None and len(labels) > 7,
        marks=[Mark(x.at(low), round(x.at(high) - x.at(low), 1), text) for low, high, text in marks],
    )


def compact(number: float) -> str:
    """A number with few characters.

    >>> [compact(n) for n in (0.5, 1500, 2e6, 3.25e9, 1e12)]
    ['0.5', '1500', '2M', '3.25B', '1T']
    """
    for letter, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if abs(number) >= factor:
            return f"{number / factor:.4g}{letter}"
    return f"{number:.6g}"


class _Axis:
    """A linear scale from numbers to pixels, with a little room at both ends."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high = low - room, high + room
        self.first, self.last = first, last

    def at(self, number: float) -> float:
        return round(self.first + (number - self.low) / (self.high - self.low) * (self.last - self.first), 1)

    def ticks(self) -> list[Tick]:
        """Multiples of 1, 2 or 5 times a power of ten, about six of them."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [Tick(self.at(number * step), compact(number * step)) for number in numbers]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value) and math.isfinite(point.x)]


def _line(series: Series, color: int, x: _Axis, y: _Axis) -> Line:
    points = series.points
    inside = [p for p in points if math.isfinite(p.low) and math.isfinite(p.high)]
    edge = [(x.at(p.x), y.at(p.high)) for p in inside] + [(x.at(p.x), y.at(p.low)) for p in reversed(inside)]
    band = _path(edge) + "Z" if len(inside) > 1 else ""
    known = set(map(id, inside))
    dots = [
        Dot(
            x.at(p.x), y.at(p.value),
            y.at(p.low) if id(p) in known else None, y.at(p.high) if id(p) in known else None, p.label, p.href,
        )
        for p in points
    ]  # fmt: skip
    return Line(series.name, color, band, _path([(dot.x, dot.y) for dot in dots]), dots)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
