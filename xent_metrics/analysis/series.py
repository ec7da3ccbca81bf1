"""The checkpoints of one run as series: each metric over the steps, its slope, and where it shifted.

    for series in read_series(["runs/checkpoint-100", "runs/checkpoint-200", …]):
        print(series.task, series.metric, series.slope, series.changes)

Checkpoints are paired with the first one that can be used, as two runs are in a comparison. Those that can't be are left out
of that metric's series, and the series says why.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xent_metrics.analysis.jackknife import from_scale, leave_one_out, on_scale, values_of
from xent_metrics.analysis.run_comparison import paired_sums
from xent_metrics.analysis.runs import Run, TaskRun, read_run
from xent_metrics.analysis.training import step_of
from xent_metrics.analysis.trend import FEWEST_CHECKPOINTS, Points, Shift, level_shifts, places, slope
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Change", "Series", "follow", "read_series"]

_LEVEL = 0.95  # of the intervals
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Change:
    """A shift of a metric's level, after the checkpoint at step `after` and by that at step `by`.

    It may have happened anywhere after `earliest` and by `latest`. `size` is the shift of the value in the metric's unit, or
    relative to it, with its standard error and 95 % interval. `p_corrected` is `p_value` times the number of places that were
    looked at in all series. `better` is True or False if the metric says which direction is better.
    """

    after: int
    by: int
    earliest: int
    latest: int
    size: float
    standard_error: float
    low: float
    high: float
    p_value: float
    p_corrected: float
    better: bool | None


@dataclass(frozen=True)
class Series:
    """One metric of one task over checkpoints.

    `slope`, with its standard error and 95 % interval, is the change of the value per step; for perplexities and their like, that
    of its logarithm, and `relative` is True. `left_out` says by step why checkpoints are missing from the series, `reason` why
    there is no slope, or no search for changes.
    """

    task: str
    metric: str
    unit: str
    steps: list[int]
    values: list[float]
    documents: int
    relative: bool
    slope: float = math.nan
    standard_error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    changes: list[Change] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    reason: str | None = None

    @property
    def notes(self) -> list[str]:
        """Why checkpoints are left out, by reason, and why there is no slope or search."""
        by_reason: dict[str, list[int]] = {}
        for step, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(step)
        left_out = [f"left out: {_listed(steps)}: {reason}" for reason, steps in by_reason.items()]
        return left_out + ([self.reason] if self.reason else [])

    def shown(self, number: float) -> str:
        """A slope or the size of a change, with its sign; in percent if it is relative."""
        return f"{100 * number:+.3g} %" if self.relative else f"{number:+.3g}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def _listed(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} checkpoints from step {min(steps)} to {max(steps)}"


def read_series(folders: Sequence[str | Path], *, steps: Sequence[int] | None = None, window: int = 20) -> list[Series]:
    """Read checkpoints that were evaluated one by one, and follow each metric of each task over them.

    Args:
        folders: lm-eval's output folders, one per checkpoint, in any order.
        steps: the step of each; by default what `step_of` reads in its results or its folder's name.
        window: how many checkpoints on either side are looked at for a change.

    Raises:
        ComparisonError: fewer than three checkpoints, two of one step, or a step that can't be told.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 3 or (steps is not None and len(steps) != len(paths)):
        given = f"{len(paths)} folders" + ("" if steps is None else f" and {len(steps)} steps")
        raise ComparisonError(
            f"a series takes the folders of three or more checkpoints, such as runs/*, and a step for each; got {given}"
        )
    if window < 3:
        raise ComparisonError(f"a window takes three or more checkpoints on either side; got {window}")
    return follow({"": _with_steps(paths, steps)}, window=window)[""]


def follow(
    trainings: Mapping[str, Iterable[tuple[int, Run]]], *, metrics: Collection[str] | None = None, window: int = 20
) -> dict[str, list[Series]]:
    """The series of each training; p values of changes are corrected for all of them together.

    Args:
        trainings: by name, the steps of its checkpoints and their runs, which are read one at a time. A step comes once.
        metrics: those that are followed, all by default.
        window: how many checkpoints on either side are looked at for a change.
    """
    collected = {name: _collect(checkpoints, metrics) for name, checkpoints in trainings.items()}
    tests = sum(len(places(len(found.points))) for each in collected.values() for found in each)
    return {name: [found.series(window, tests) for found in each] for name, each in collected.items()}


def _collect(checkpoints: Iterable[tuple[int, Run]], metrics: Collection[str] | None) -> list[_Collected]:
    collected: dict[tuple[str, str], _Collected] = {}
    for step, run in checkpoints:
        for task in run.tasks.values():
            for name in task.values:
                if metrics is None or name in metrics:
                    collected.setdefault((task.name, name), _Collected(task.name, name)).add(step, task)
    return list(collected.values())


def _with_steps(paths: Sequence[Path], steps: Sequence[int] | None) -> Iterator[tuple[int, Run]]:
    """Each run with its step, read one at a time."""
    seen: dict[int, Path] = {}
    for place, path in enumerate(paths):
        run = read_run(path)
        step = steps[place] if steps is not None else step_of(path, run.model, run.results)
        if step in seen:
            raise ComparisonError(
                f"{seen[step]} and {path} are both of step {step}; a series takes one run per step. Leave one out, or give the "
                "steps with --steps"
            )
        seen[step] = path
        yield step, run


class _Collected:
    """What is kept of the checkpoints for one metric: not their documents, but the values without each."""

    def __init__(self, task: str, name: str) -> None:
        self.task, self.name = task, name
        self.anchor: TaskRun | None = None  # the first one that can be used
        self.points: dict[int, tuple[float, Array]] = {}
        self.left_out: dict[int, str] = {}

    def add(self, step: int, task: TaskRun) -> None:
        anchor = self.anchor or task
        try:
            self.points[step] = _point(anchor, task, self.name)
        except ComparisonError as error:
            self.left_out[step] = error.message
        else:
            self.anchor = anchor

    def series(self, window: int, tests: int) -> Series:
        metric, steps = self.anchor.metrics[self.name] if self.anchor else None, sorted(self.points)
        values, without = [self.points[step][0] for step in steps], [self.points[step][1] for step in steps]
        found = Series(
            task=self.task,
            metric=self.name,
            unit=metric.value_unit if metric else "",
            steps=steps,
            values=[_in_unit(metric, value) for value in values],
            documents=len(without[0]) if without else 0,
            relative=metric is not None and metric.interval_scale == "log",
            left_out=self.left_out,
        )
        if metric is None or len(steps) < 3:
            return replace(found, reason=f"{len(steps)} checkpoints can be used; a slope takes three")
        points = Points(np.array(steps, dtype=float), np.array(values), np.stack(without))
        fit, (low, high) = slope(points), slope(points).interval(_LEVEL)
        found = replace(found, slope=fit.value, standard_error=fit.error, low=low, high=high)
        if not places(len(steps)):
            return replace(
                found, reason=f"{len(steps)} checkpoints: a change is looked for from {FEWEST_CHECKPOINTS} on"
            )
        shifts = level_shifts(points, window=window, tests=tests, level=1 - _LEVEL)
        return replace(found, changes=[_change(shift, metric, steps) for shift in shifts])


def _point(anchor: TaskRun, task: TaskRun, name: str) -> tuple[float, Array]:
    """A checkpoint's value on the metric's scale, and that without each document, ``(D,)``."""
    metric = anchor.metrics.get(name)
    sums = paired_sums(anchor, task, name, names=("the first checkpoint", "this one"))[1].sums
    assert metric is not None  # or else it isn't paired
    if not metric.has_standard_error:
        raise ComparisonError(
            f"{metric.name} is not a differentiable function of its sums, so it has no standard error"
        )
    value = float(on_scale(metric, values_of(metric, sums.sum(dim=0))))
    if len(sums) < 2 or not math.isfinite(value):
        raise ComparisonError(
            f"its value is {value:.4g} over {len(sums)} documents; a series takes finite ones over two or more"
        )
    return value, leave_one_out(metric, sums).numpy()


def _in_unit(metric: TokenMetric | None, value: float) -> float:
    return value if metric is None else from_scale(metric, value)


def _change(shift: Shift, metric: TokenMetric, steps: list[int]) -> Change:
    size, low, high = shift.size.value, *shift.size.interval(_LEVEL)
    error, up = shift.size.error, metric.higher_is_better
    if metric.interval_scale == "log":
        size, low, high = (math.expm1(each) for each in (size, low, high))
        error *= 1 + size
    return Change(
        after=steps[shift.place - 1],
        by=steps[shift.place],
        earliest=steps[shift.first - 1],
        latest=steps[shift.last],
        size=size,
        standard_error=error,
        low=low,
        high=high,
        p_value=shift.p_value,
        p_corrected=shift.corrected,
        better=None if up is None else (size > 0) == up,
    )
