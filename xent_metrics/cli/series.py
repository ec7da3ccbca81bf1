"""`xent series`: the checkpoints of one run, their slope, and where a metric shifted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from xent_metrics.analysis.series import Change, Series

__all__ = ["series"]

_LEGEND = (
    "slope: change of the value per step, with its 95 % interval; in percent if the metric is compared by ratios. changes: the "
    "steps between which the level shifted; the range in which it may have; the size with its 95 % interval; p, corrected for "
    "all places that were looked at. Intervals are about other documents and the scatter of checkpoints around the line."
)


def series(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders, one per checkpoint, in any order.")],
    steps: Annotated[
        str | None,
        typer.Option(
            help="The step of each folder, as 100,200,…; by default that in its metadata, its model's arguments or name, or its "
            "own name."
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Checkpoints on either side that are looked at for a change.")] = 20,
    changes_only: Annotated[bool, typer.Option("--changes-only", help="Show only the metrics that changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Follow metrics over the checkpoints of one run: slope with interval, and the step at which a level shifted."""
    from xent_metrics.analysis.series import read_series

    found = read_series(runs, steps=_numbers(steps), window=window)
    shown = [each for each in found if each.changes] if changes_only else found
    if as_json:
        print_json([each.to_json() for each in shown])
    else:
        _print(found, shown)


def _numbers(steps: str | None) -> list[int] | None:
    from xent_metrics.errors import ComparisonError

    if steps is None:
        return None
    try:
        return [int(step) for step in steps.split(",")]
    except ValueError as error:
        raise ComparisonError(f"--steps: expected whole numbers separated by commas; got {steps!r}") from error


def _print(found: Sequence[Series], shown: Sequence[Series]) -> None:
    from xent_metrics.cli.tables import (
        METRIC_AND_UNIT,
        Column,
        print_legend,
        print_reasons,
        print_table,
        table_console,
    )

    reasons = list(dict.fromkeys(reason for each in shown for reason in each.notes))
    columns = [
        Column("task"),
        Column(METRIC_AND_UNIT, bold=True),
        Column("steps", drop=2, justify="right"),
        Column("first … last\nat steps", drop=1, justify="right"),
        Column("slope\n95 % interval", justify="right"),
        Column("changes"),
    ]
    if shown:
        print_table(columns, [_cells(each, reasons) for each in shown])
    print_reasons(reasons)
    changed = sum(bool(each.changes) for each in found)
    text = f"{changed} of {len(found)} metrics changed their level."
    table_console().print(text, highlight=False)
    print_legend(_LEGEND)


def _cells(series: Series, reasons: list[str]) -> list[str]:
    from xent_metrics.cli.tables import metric_and_unit

    marks = "".join(f" [{reasons.index(reason) + 1}]" for reason in series.notes)
    has_slope = math.isfinite(series.slope)
    values, steps = series.values, series.steps
    return [
        series.task,
        metric_and_unit(series.metric, series.unit),
        f"{len(steps)}{marks}",
        f"{values[0]:.4g} … {values[-1]:.4g}\n{steps[0]} … {steps[-1]}" if values else "",
        f"{series.shown(series.slope)}\n{series.shown(series.low)} … {series.shown(series.high)}" if has_slope else "",
        "\n".join(_change(each, series) for each in series.changes) or "none",
    ]


def _change(change: Change, series: Series) -> str:
    verdict = {True: "better", False: "worse", None: "changed"}[change.better]
    interval = f"{series.shown(change.low)} … {series.shown(change.high)}"
    return (
        f"{verdict} after {change.after}, by {change.by} ({change.earliest} … {change.latest}): "
        f"{series.shown(change.size)} ({interval}), p {change.p_corrected:.2g}"
    )
