"""`xent intervals`: the values of lm-eval runs with their uncertainty."""

from __future__ import annotations

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

    method = partial(methods.bootstrap, num_resamples=num_resamples) if bootstrap else methods.delta_interval
    found: list[dict[str, Any]] = []
    for run in map(read_run, runs):
        found += _measure(run, method)
        print_problems(run)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _measure(run: Run, method: Any) -> Iterator[dict[str, Any]]:
    for task in run.tasks.values():
        for name, metric in task.metrics.items():
            states = task.states(name)
            if states is not None:
                where = {"run": str(run.path.parent), "task": task.name, "metric": name, "unit": metric.value_unit}
                yield where | asdict(method(metric, states)) | {"documents": len(states)}


def _print(found: list[dict[str, Any]]) -> None:
    from xent_metrics.cli.tables import Column, metric_and_unit, print_table

    columns = [
        Column("task"),
        Column("metric", bold=True),
        Column("value", justify="right"),
        Column("± s.e.", drop=2, justify="right"),
        Column("95 % interval", drop=1, justify="right"),
        Column("documents", drop=3, justify="right"),
    ]
    rows = [
        [
            row["task"],
            metric_and_unit(row["metric"], row["unit"]),
            f"{row['value']:.5g}",
            f"{row['standard_error']:.2g}",
            f"{row['low']:.4g} … {row['high']:.4g}",
            f"{row['documents']:,}",
        ]
        for row in found
    ]
    print_table(columns, rows)
