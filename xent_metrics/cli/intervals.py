"""`xent intervals`: the values of lm-eval runs with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xent_metrics.cli.output import AsJson, print_json, print_problems

if TYPE_CHECKING:
    from xent_metrics.analysis.runs import Run

__all__ = ["intervals"]

_LEGEND = (
    "documents: their number. effective: the number that the value effectively rests on, fewer if some are much longer than "
    "others. On either side, the interval is about Student's quantile for that number times the standard error: many standard "
    "errors if it is small, and more on the side of a long tail. Metrics that are 0 or 1 on each document have Wilson's interval."
)


def intervals(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders, written with --log_samples.")],
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Use the cluster bootstrap instead of the jackknife.")
    ] = False,
    num_resamples: Annotated[int, typer.Option(help="Number of bootstrap resamples.", min=99)] = 2000,
    as_json: AsJson = False,
) -> None:
    """Give each value of a run its standard error and 95 % interval over documents."""
    from xent_metrics.analysis import intervals as methods
    from xent_metrics.analysis.runs import read_run

    read = [read_run(path) for path in runs]
    method = partial(methods.bootstrap, num_resamples=num_resamples) if bootstrap else methods.delta_interval
    found = [list(_measure(run, method)) for run in read]
    for run in read:
        print_problems(run)
    if as_json:
        print_json([row for rows in found for row in rows])
    else:
        _print(read, found)


def _measure(run: Run, method: Any) -> Iterator[dict[str, Any]]:
    for task in run.tasks.values():
        for name, metric in task.metrics.items():
            sums = task.sums(name)
            if sums is not None:
                where = {"run": str(run.path.parent), "task": task.name, "metric": name, "unit": metric.value_unit}
                yield where | asdict(method(metric, sums)) | {"documents": len(sums)}


def _print(runs: list[Run], found: list[list[dict[str, Any]]]) -> None:
    from xent_metrics.analysis.run_matrix import run_letters
    from xent_metrics.cli.tables import METRIC_AND_UNIT, Column, print_legend, print_reasons, print_run, print_table

    several = len(runs) > 1
    letters = run_letters(len(runs))
    for letter, run in zip(letters, runs, strict=True) if several else ():
        print_run(letter, run)
    columns = [
        *([Column("run")] if several else []),
        Column("task"),
        Column(METRIC_AND_UNIT, bold=True),
        Column("value", justify="right"),
        Column("± s.e.", drop=2, justify="right"),
        Column("95 % interval", drop=1, justify="right"),
        Column("documents\neffective", drop=3, justify="right"),
    ]
    notes = list(dict.fromkeys(row["note"] for rows in found for row in rows if row["note"]))
    cells = [
        [*([letter] if several else []), *_cells(row, notes)]
        for letter, rows in zip(letters, found, strict=True)
        for row in rows
    ]
    print_table(columns, cells)
    print_reasons(notes)
    print_legend(_LEGEND)


def _cells(row: dict[str, Any], notes: list[str]) -> list[str]:
    from xent_metrics.cli.tables import metric_and_unit

    mark = f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
    return [
        row["task"],
        metric_and_unit(row["metric"], row["unit"]),
        f"{row['value']:.5g}",
        f"{row['standard_error']:.2g}",
        f"{row['low']:.4g} … {row['high']:.4g}{mark}",
        _documents(row),
    ]


def _documents(row: dict[str, Any]) -> str:
    effective = row["effective_documents"]
    return f"{row['documents']:,}" + ("" if math.isnan(effective) else f"\n{effective:,.1f}")
