"""Changes of a metric's level over training, as `xent series` finds them; it takes the samples of every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xent_metrics.analysis.trend import FEWEST_CHECKPOINTS, places
from xent_metrics.errors import ComparisonError
from xent_metrics.view.charts import compact
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.summaries import RunSummary

if TYPE_CHECKING:  # what reads samples takes torch, and is imported when it is needed
    from xent_metrics.analysis.runs import Run
    from xent_metrics.analysis.series import Change, Series

__all__ = ["changes", "searchable"]


def searchable(runs: Iterable[RunSummary], task: str) -> dict[str, dict[int, RunSummary]]:
    """The trainings with enough checkpoints to look for changes in a task: their runs by step, the last one of each step.

    A group has none, since it has no documents of its own.
    """
    found: dict[str, dict[int, RunSummary]] = {}
    for run in runs:
        if run.training.step is not None and not run.tasks[task].is_group:
            found.setdefault(run.training.series, {})[int(run.training.step)] = run
    return {name: dict(sorted(each.items())) for name, each in found.items() if len(each) >= FEWEST_CHECKPOINTS}


def changes(folder: RunFolder, runs: Sequence[RunSummary], task: str, metric: str) -> dict[str, Any]:
    """The changes in all trainings with enough checkpoints, p values corrected for all places that were looked at.

    Args:
        folder: of the runs.
        runs: those that have the metric.
        task: its name.
        metric: the only one that is looked at.
    """
    from xent_metrics.analysis.series import follow

    unread: list[str] = []
    trainings = searchable(runs, task)
    found = follow(
        {name: _checkpoints(folder, each, task, unread) for name, each in trainings.items()}, metrics=[metric]
    )
    series = {name: each[0] for name, each in found.items() if each}
    return {
        "rows": [_row(name, each, change) for name, each in series.items() for change in each.changes],
        "marks": [mark for each in series.values() for mark in _marks(each)],
        "notes": unread + [f"{name}: {note}" for name, each in series.items() for note in each.notes],
        "places": sum(len(places(len(each.steps))) for each in series.values()),
    }


def _checkpoints(
    folder: RunFolder, runs: Mapping[int, RunSummary], task: str, unread: list[str]
) -> Iterator[tuple[int, Run]]:
    for step, run in runs.items():
        try:
            opened = folder.task(run, task)
        except ComparisonError as error:
            unread.append(f"{run.name}: {error.message}")
        else:
            yield step, opened.run


def _row(training: str, series: Series, change: Change) -> dict[str, Any]:
    return {
        "training": training,
        "after": compact(change.after),
        "by": compact(change.by),
        "range": f"{compact(change.earliest)} … {compact(change.latest)}",
        "size": series.shown(change.size),
        "interval": f"{series.shown(change.low)} … {series.shown(change.high)}",
        "p": f"{change.p_corrected:.2g}",
        "verdict": {True: "better", False: "worse", None: "—"}[change.better],
    }


def _marks(series: Series) -> list[tuple[float, float, str]]:
    """The range of steps of each change, and what it says."""
    return [
        (change.earliest, change.latest, f"{series.shown(change.size)} by step {compact(change.by)}")
        for change in series.changes
    ]
