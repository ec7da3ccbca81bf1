"""The plots of a report as inline SVG: reliability, and the loss by position, token frequency and domain."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xent_metrics import plots
from xent_metrics.analysis.intervals import Interval
from xent_metrics.analysis.runs import TaskRun
from xent_metrics.analysis.token_view import by_domain, by_frequency, by_position
from xent_metrics.errors import ComparisonError
from xent_metrics.metrics import CrossEntropy, ExpectedCalibrationError
from xent_metrics.sums import exact_sum

__all__ = ["Plot", "error_bars", "run_color", "task_plots"]

#: One task in each run that has it, by the run's letter.
_Tasks = Mapping[str, TaskRun]


@dataclass(frozen=True)
class Plot:
    """An SVG that is safe to insert into the page, with a label for screen readers and what its bars mean."""

    label: str
    svg: Any
    caption: str = ""


def run_color(letter: str) -> str:
    """The colour of a run's letter in every plot."""
    return plots.SERIES[(ord(letter) - ord("A")) % len(plots.SERIES)]


def task_plots(runs: _Tasks, notes: list[str], domain: str | None) -> Iterator[Plot]:
    """Every plot that the logged samples of a task allow; if `domain` can't be plotted, `notes` gets the reason."""
    yield from _reliability(runs)
    if all(task.token_columns for task in runs.values()):
        by_place = {letter: by_position(task) for letter, task in runs.items()}
        yield _by_group("Loss by position", "position of the token in the document or answer", by_place)
        by_count = {letter: by_frequency(task) for letter, task in runs.items()}
        yield _by_group("Loss by token frequency", "occurrences of the token in these documents", by_count)
    if domain is not None:
        try:
            yield _by_domain(runs, domain)
        except ComparisonError as error:
            notes.append(f"Not plotted by {domain}: {error.message}.")


def _reliability(runs: _Tasks) -> Iterator[Plot]:
    """One diagram per run: two on the same axes would hide each other."""
    for letter, task in runs.items():
        for name, metric in task.metrics.items():
            sums = task.sums(name) if isinstance(metric, ExpectedCalibrationError) else None
            if sums is None or not isinstance(metric, ExpectedCalibrationError) or metric.binning != "width":
                continue
            bins = metric.bins(metric.unpack(exact_sum.to_float(sums.total)))
            title = "Reliability" if len(runs) == 1 else f"Reliability of {letter}"
            yield _drawn(title, partial(_draw_reliability, bins=bins, rows=task.rows_of(name), title=title))
            break


def _draw_reliability(drawn: Any, bins: Any, rows: str, title: str) -> None:
    axes, share = plots.reliability_axes(drawn)
    plots.draw_reliability(axes, share, bins, rows)
    axes.set_title(axes.get_title(loc="left").replace("Reliability", title), loc="left")


def _by_domain(runs: _Tasks, domain: str) -> Plot:
    first = next(iter(runs.values()))
    name = next((name for name in first.metrics if first.sums(name) is not None), None)
    if name is None:
        raise ComparisonError(f"task {first.name}: the documents' sums were not logged; evaluate with --log_samples")
    found = {letter: by_domain(task, name, domain) for letter, task in runs.items() if name in task.metrics}
    return _by_group(f"{name} by {domain}", domain, found, unit=first.metrics[name].value_unit)


def _by_group(
    title: str,
    xlabel: str,
    runs: Mapping[str, tuple[list[str], list[Interval]]],
    unit: str = CrossEntropy.value_unit,
) -> Plot:
    """All runs on the same axes."""
    order = list(dict.fromkeys(label for labels, _ in runs.values() for label in labels))

    def draw(drawn: Any) -> None:
        axes = drawn.add_subplot()
        for letter, (labels, intervals) in runs.items():
            plots.draw_by_group(
                axes, labels, [i.value for i in intervals], error_bars(intervals), title=title, unit=unit, xlabel=xlabel,
                called="" if len(runs) == 1 else letter, color=run_color(letter), order=order,
            )  # fmt: skip

    return replace(
        _drawn(title, draw), caption="Bars: 95 % interval over documents; a point without one rests on too few."
    )


def error_bars(intervals: list[Interval]) -> list[list[float]]:
    """The lengths below and above each value; 0 for an interval that isn't finite."""
    sides = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    return [[length if math.isfinite(length) else 0.0 for length in side] for side in sides]


def _drawn(label: str, draw: Callable[[Any], None]) -> Plot:
    """A plot as SVG in the page's text colour, which follows the light or dark scheme."""
    from markupsafe import Markup

    buffer = io.StringIO()
    with plots.figure(buffer, size=(5.6, 4.2), format="svg") as drawn:
        drawn.patch.set_alpha(0)
        draw(drawn)
        for axes in drawn.axes:
            axes.patch.set_alpha(0)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor")
    return Plot(label, Markup(svg))
