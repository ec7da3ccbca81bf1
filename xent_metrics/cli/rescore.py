"""`xent rescore`: other metrics of a run of lm-eval, from its logged tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xent_metrics.cli.output import AsJson, print_json, print_note

if TYPE_CHECKING:
    from xent_metrics.analysis.runs import Run
    from xent_metrics.hosts.lm_eval.rescore import RescoredTask

__all__ = ["rescore"]


def rescore(
    run: Annotated[Path, typer.Argument(help="lm-eval output folder, written with log_tokens=true and --log_samples.")],
    metrics: Annotated[str, typer.Option(metavar="a,b:option=value;…", help="The metrics, as in --xent_metrics.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeat for several.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a run with these metrics, for the other commands.")
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out documents that are damaged or missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute other metrics of a run from its logged tokens, without the model: the values that it would have given."""
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.hosts.lm_eval.command import parse_metrics
    from xent_metrics.hosts.lm_eval.rescore import rescore as rescored
    from xent_metrics.hosts.lm_eval.rescored_run import folder_for, write_rescored

    entries, read = parse_metrics(metrics, "--metrics"), read_run(run)
    if output is not None:
        folder_for(read, output)  # a folder that is taken is refused before anything is computed
    found = rescored(read, entries, tasks=task or (), skip_damaged=skip_damaged)
    for problem in (problem for each in found for problem in each.skipped):
        print_note(f"{read.path.parent}: {problem}")
    written = None if output is None else write_rescored(read, found, output)
    rows = [row for each in found for row in _rows(read, each)]
    (print_json if as_json else _print)(rows)
    if written is not None:
        print_note(f"written to {written}")


def _rows(run: Run, task: RescoredTask) -> list[dict[str, Any]]:
    units = {entry.name: entry.unit for entry in task.entries}
    return [
        {
            "run": str(run.path.parent),
            "task": task.task.name,
            "metric": name,
            "unit": units[name],
            "value": value,
            "standard_error": error,
            "documents": len(task.samples),
        }
        for name, (value, error) in task.values.items()
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    from xent_metrics.cli.tables import METRIC_AND_UNIT, Column, metric_and_unit, print_table

    columns = [
        Column("task"),
        Column(METRIC_AND_UNIT, bold=True),
        Column("value", justify="right"),
        Column("± s.e.", drop=2, justify="right"),
        Column("documents", drop=3, justify="right"),
    ]
    cells = [
        [
            row["task"],
            metric_and_unit(row["metric"], row["unit"]),
            f"{row['value']:.5g}",
            f"{row['standard_error']:.2g}",
            f"{row['documents']:,}",
        ]
        for row in rows
    ]
    print_table(columns, cells)
