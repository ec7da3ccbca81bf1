"""A metric of a task over the steps or tokens of training, with its interval band.

Values and standard errors are those in the results, so that no samples are read. The interval is the value ± Student's quantile
for the number of documents times the standard error; on the log scale for perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xent_metrics.analysis.scipy_stats import scipy_stats
from xent_metrics.errors import ComparisonError
from xent_metrics.view.changes import changes, searchable
from xent_metrics.view.charts import Chart, Point, Series, chart
from xent_metrics.view.folder import RunFolder, Snapshot
from xent_metrics.view.links import page_name, slug
from xent_metrics.view.summaries import Reported, RunSummary
from xent_metrics.view.tables import number, run_cells

__all__ = ["curves", "interval"]


def interval(reported: Reported, documents: int, *, log_scale: bool) -> tuple[float, float]:
    """The 95 % interval of a value with a standard error; nan without one.

    >>> low, high = interval(Reported(2.0, 0.1), 1000, log_scale=False)
    >>> round(low, 2), round(high, 2)
    (1.8, 2.2)
    """
    if not math.isfinite(reported.error) or documents == 1:
        return math.nan, math.nan
    quantile = float(scipy_stats().t.ppf(0.975, documents - 1 if documents else math.inf))
    if not log_scale:
        return reported.value - quantile * reported.error, reported.value + quantile * reported.error
    if reported.value <= 0:
        return math.nan, math.nan
    factor = math.exp(min(quantile * reported.error / reported.value, 700.0))
    return reported.value / factor, reported.value * factor


def curves(
    folder: RunFolder, snapshot: Snapshot, task: str, metric: str, *, with_changes: bool = False
) -> dict[str, Any]:
    """What the page of a metric over training shows. Only `with_changes` reads samples."""
    runs = [run for run in snapshot.tasks[task] if metric in run.tasks[task].values]
    unit, log_scale = _unit_and_scale(folder, runs, task, metric)
    intervals = {
        run.slug: interval(run.tasks[task].values[metric], run.tasks[task].documents, log_scale=log_scale)
        for run in runs
    }
    found = changes(folder, runs, task, metric) if with_changes else None
    charts = [
        _over(runs, task, metric, unit, intervals, "step", "training step", found["marks"] if found else ()),
        _over(runs, task, metric, unit, intervals, "tokens", "training tokens", ()),
    ]
    others = [name for run in runs for name in run.tasks[task].values]
    return {
        "task": (task, page_name("task", slug(task))),
        "metric": metric,
        "unit": unit,
        "charts": [drawn for drawn in charts if drawn is not None],
        "metrics": [
            (name, page_name("chart", slug(task), slug(name)), name == metric) for name in dict.fromkeys(others)
        ],
        "changes": found,
        "look": page_name("changes", slug(task), slug(metric)) if searchable(runs, task) else None,
        "rows": [_row(run, run.tasks[task].values[metric], intervals[run.slug]) for run in runs],
        "unplaced": sum(run.training.step is None and run.training.tokens is None for run in runs),
    }


def _row(run: RunSummary, reported: Reported, ends: tuple[float, float]) -> dict[str, Any]:
    shown = "" if math.isnan(ends[0]) else f"{number(ends[0])} … {number(ends[1])}"
    error = "" if math.isnan(reported.error) else f"± {reported.error:.2g}"
    return run_cells(run) | {"value": number(reported.value), "error": error, "interval": shown}


def _over(
    runs: Sequence[RunSummary], task: str, metric: str, unit: str, intervals: dict[str, tuple[float, float]],
    axis: str, label: str, marks: Sequence[tuple[float, float, str]],
) -> Chart | None:  # fmt: skip
    """The chart over one axis; None if no run says where it is."""
    series: dict[str, list[Point]] = {}
    for run in runs:
        place = getattr(run.training, axis)
        if place is not None:
            value, (low, high) = run.tasks[task].values[metric].value, intervals[run.slug]
            text = f"{run.name}: {number(value)}" + ("" if math.isnan(low) else f" ({number(low)} … {number(high)})")
            point = Point(place, value, low, high, text, page_name("run", run.slug))
            series.setdefault(run.training.series, []).append(point)
    lines = [Series(name, points) for name, points in series.items()]
    return chart(lines, title=f"{metric} of {task} by {label}", x_label=label, unit=unit, marks=marks)


def _unit_and_scale(folder: RunFolder, runs: Sequence[RunSummary], task: str, metric: str) -> tuple[str, bool]:
    """The metric's unit, and whether its intervals are symmetric on the log scale."""
    from xent_metrics.analysis.run_metrics import configured_metrics
    from xent_metrics.plugins import plugins

    name, built = metric.partition(",")[0], {}
    for run in runs[:1]:
        try:
            built = configured_metrics(folder.configuration(run, task), task, [])
        except (ComparisonError, AttributeError):  # gone meanwhile, or a configuration of another schema
            continue
    if name in built:
        return built[name].value_unit, built[name].interval_scale == "log"
    known = plugins().metrics.get(name)  # a group has no configuration
    return (known.value_unit, known.interval_scale == "log") if known else ("lm-eval's own", False)
