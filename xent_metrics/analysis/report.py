"""One self-contained HTML page of runs: values with intervals, paired differences, pictures, and the documents to browse.

No network, no library in the page. Text of documents is data: it is compressed into a block that can't hold markup, and
the page's script only ever makes text of it; a content security policy lets nothing else run.
"""

from __future__ import annotations

import io
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xent_metrics import plots
from xent_metrics.analysis.intervals import Interval, delta_interval
from xent_metrics.analysis.report_documents import pack_documents
from xent_metrics.analysis.run_comparison import RunComparison, compare_runs
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.token_view import by_domain, by_frequency, by_position
from xent_metrics.errors import ComparisonError, InvalidInputError, MissingExtraError
from xent_metrics.metrics import CrossEntropy, ExpectedCalibrationError
from xent_metrics.sums import exact_sum

__all__ = ["write_report"]

#: The task of one name in each run that has it, by the run's letter.
_Tasks = dict[str, TaskRun]


def write_report(
    runs: Sequence[Run], path: str | Path, *, title: str = "Loss report", domain: str | None = None
) -> None:
    """Write the page for one or more runs; the others are compared with the first.

    Args:
        runs: from `read_run`.
        path: the HTML file.
        domain: a field of the documents by whose value the loss is drawn.

    Raises:
        MissingExtraError: jinja2, scipy or matplotlib is not installed.
        InvalidInputError: the file's folder isn't there.
    """
    from xent_metrics.version import __version__

    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path}: there is no folder {path.parent}; make it first")
    template = _template()
    letters = [chr(ord("A") + i) for i in range(len(runs))]
    notes: list[str] = []
    tasks = [_task(name, found, notes, domain) for name, found in _by_task(runs, letters).items()]
    compared = dict(_compared(runs, letters, notes))
    documents = pack_documents(runs, letters)
    page = template.render(
        title=title,
        version=__version__,
        nonce=secrets.token_urlsafe(16),
        runs=[
            {
                "letter": letter,
                "color": _color(letter),
                "model": run.model,
                "path": run.path.parent,
                "problems": run.problems,
            }
            for run, letter in zip(runs, letters, strict=True)
        ],
        letters=letters,
        tasks=tasks,
        compared=compared,
        notes=notes,
        documents=documents,
    )
    path.write_text(page, encoding="utf-8")


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report needs jinja2: pip install 'xent-metrics[analysis,plots]'") from error
    loader = jinja2.PackageLoader("xent_metrics.analysis")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2")


def _color(letter: str) -> str:
    return plots.SERIES[(ord(letter) - ord("A")) % len(plots.SERIES)]


def _by_task(runs: Sequence[Run], letters: Sequence[str]) -> dict[str, _Tasks]:
    found: dict[str, _Tasks] = {}
    for run, letter in zip(runs, letters, strict=True):
        for task in run.tasks.values():
            found.setdefault(task.name, {})[letter] = task
    return found


# Numbers.


def _task(name: str, runs: _Tasks, notes: list[str], domain: str | None) -> dict[str, Any]:
    metrics = list(dict.fromkeys(metric for task in runs.values() for metric in task.values))
    rows = []
    for metric in metrics:
        made = next((task.metrics[metric] for task in runs.values() if metric in task.metrics), None)
        unit = made.value_unit if made is not None else "lm-eval's own"
        cells = {letter: _cell(task, metric) for letter, task in runs.items() if metric in task.values}
        rows.append({"name": metric, "unit": unit, "cells": cells})
    documents = {letter: len(task.samples) for letter, task in runs.items()}
    return {"name": name, "rows": rows, "documents": documents, "pictures": list(_pictures(name, runs, notes, domain))}


def _cell(task: TaskRun, name: str) -> dict[str, str]:
    """A value with its interval, or else with lm-eval's standard error."""
    metric, error = task.metrics.get(name), task.standard_errors.get(name, math.nan)
    states = task.states(name) if metric is not None else None
    cell = {"value": _number(task.values[name]), "error": "" if math.isnan(error) else f"± {error:.2g}", "interval": ""}
    if metric is not None and states is not None:
        interval = delta_interval(metric, states)
        if not math.isnan(interval.low):
            cell["interval"] = f"{_number(interval.low)} … {_number(interval.high)}"
    return cell


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.5g}"


def _compared(
    runs: Sequence[Run], letters: Sequence[str], notes: list[str]
) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """What a run's difference from the first is, by task, metric and letter."""
    for run, letter in zip(runs[1:], letters[1:], strict=True):
        try:
            rows = compare_runs(runs[0], run, num_resamples=1999)
        except ComparisonError as error:
            notes.append(f"{letter} is not compared with A: {error}.")
            continue
        for row in rows:
            yield (row.task, row.metric, letter), _difference(row, letter)


def _difference(row: RunComparison, letter: str) -> dict[str, Any]:
    if row.result is None:
        return {"reason": row.reason}
    result = row.result
    needed = f"{result.documents_needed:,.0f}" if math.isfinite(result.documents_needed) else "∞"
    return {
        "reason": None,
        "difference": result.shown(result.difference, 4),
        "interval": f"{result.shown(result.low)} … {result.shown(result.high)}",
        "p": f"{result.p_value:.3g}",
        "documents": f"{result.documents:,}",
        "needed": needed,
        "better": {"A": "A", "B": letter}.get(result.better or "", "—"),
    }


# Pictures.


@dataclass(frozen=True)
class _Picture:
    label: str
    svg: Any


def _pictures(name: str, runs: _Tasks, notes: list[str], domain: str | None) -> Iterator[_Picture]:
    yield from _reliability(runs)
    if all(any(sample.tokens for sample in task.samples) for task in runs.values()):
        place = "the token's place in its document, or in its answer"
        yield _of_groups("Loss by position", place, {letter: by_position(task) for letter, task in runs.items()})
        frequency = "occurrences of the token in these documents"
        found = {letter: by_frequency(task) for letter, task in runs.items()}
        yield _of_groups("Loss by token frequency", frequency, found)
    if domain is not None:
        try:
            yield _by_domain(runs, domain)
        except ComparisonError as error:
            notes.append(f"Not drawn by {domain}: {error}.")


def _reliability(runs: _Tasks) -> Iterator[_Picture]:
    """A diagram of each run: two of them on one pair of axes hide each other."""
    for letter, task in runs.items():
        for name, metric in task.metrics.items():
            states = task.states(name) if isinstance(metric, ExpectedCalibrationError) else None
            if states is None or not isinstance(metric, ExpectedCalibrationError) or metric.binning != "width":
                continue
            bins = metric.bins(metric.unpack(exact_sum.to_float(exact_sum.merge(states))))
            called = "Reliability" if len(runs) == 1 else f"Reliability of {letter}"
            yield _drawn(called, partial(_draw_reliability, bins=bins, called=called))
            break


def _draw_reliability(drawn: Any, bins: Any, called: str) -> None:
    axes, share = plots.reliability_axes(drawn)
    plots.draw_reliability(axes, share, bins)
    axes.set_title(axes.get_title(loc="left").replace("Reliability", called), loc="left")


def _by_domain(runs: _Tasks, domain: str) -> _Picture:
    first = next(iter(runs.values()))
    measured = next((name for name in first.metrics if first.states(name) is not None), None)
    if measured is None:
        raise ComparisonError(f"task {first.name}: the documents' sums were not logged")
    found = {letter: by_domain(task, measured, domain) for letter, task in runs.items() if measured in task.metrics}
    return _of_groups(f"{measured} by {domain}", domain, found, unit=first.metrics[measured].value_unit)


def _of_groups(
    title: str, xlabel: str, runs: dict[str, tuple[list[str], list[Interval]]], unit: str = CrossEntropy.value_unit
) -> _Picture:
    """All runs on the same axes."""
    order = list(dict.fromkeys(label for labels, _ in runs.values() for label in labels))

    def draw(drawn: Any) -> None:
        axes = drawn.add_subplot()
        for letter, (labels, intervals) in runs.items():
            sides = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
            halves = [[half if math.isfinite(half) else 0.0 for half in side] for side in sides]
            plots.draw_by_group(
                axes, labels, [i.value for i in intervals], halves, title=title, unit=unit, xlabel=xlabel,
                called="" if len(runs) == 1 else letter, color=_color(letter), order=order,
            )  # fmt: skip

    return _drawn(title, draw)


def _drawn(label: str, draw: Callable[[Any], None]) -> _Picture:
    """A picture as SVG that takes the page's own ink, in light and dark."""
    from markupsafe import Markup

    buffer = io.StringIO()
    with plots.figure(buffer, size=(5.6, 4.2), format="svg") as drawn:
        drawn.patch.set_alpha(0)
        draw(drawn)
        for axes in drawn.axes:
            axes.patch.set_alpha(0)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor")
    return _Picture(label, Markup(svg))
