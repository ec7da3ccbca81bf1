"""`xent compare`: runs of lm-eval against each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xent_metrics.cli.output import AsJson, print_json, print_problems, printable

if TYPE_CHECKING:
    from xent_metrics.analysis.comparison import Comparison
    from xent_metrics.analysis.run_comparison import RunComparison
    from xent_metrics.analysis.runs import Run

__all__ = ["compare"]

_LEGEND = (
    "B − A: difference, with its 95 % interval over documents. p: p value of a permutation test. documents: number compared; "
    "below, how many would detect a difference of this size (80 % power at the 5 % level). better: the better run, if the "
    "interval excludes 0 and p ≤ 0.05; – if the metric doesn't say which direction is better."
)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; each is compared with the first.")],
    as_json: AsJson = False,
    num_resamples: Annotated[int, typer.Option(help="Number of resamples of the permutation test.", min=99)] = 9999,
    shared_documents: Annotated[
        bool,
        typer.Option("--shared-documents", help="If the runs' documents differ, compare on those that both have."),
    ] = False,
) -> None:
    """Compare runs on the same documents: difference, 95 % interval, p value, and documents needed to detect it."""
    from xent_metrics.analysis.run_comparison import compare_runs
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.errors import ComparisonError

    if len(runs) < 2:
        raise ComparisonError(f"xent compare takes two or more runs; got {len(runs)}")
    first, *others = [read_run(path) for path in runs]
    found = [
        (other, compare_runs(first, other, num_resamples=num_resamples, shared_documents=shared_documents))
        for other in others
    ]
    if as_json:
        print_json([_as_json(first, other, rows) for other, rows in found])
        return
    for other, rows in found:
        _print(first, other, rows)


def _as_json(first: Run, other: Run, rows: list[RunComparison]) -> dict[str, Any]:
    return {
        "a": str(first.path),
        "b": str(other.path),
        "problems": [*first.problems, *other.problems],
        "comparisons": [
            (row.result.to_json() if row.result else {})
            | {
                "task": row.task,
                "metric": row.metric,  # the name in the task; the result has the class'
                "unit": row.unit,
                "reason": row.reason,
                "value_a": row.value_a,
                "value_b": row.value_b,
            }
            for row in rows
        ],
    }


def _print(first: Run, other: Run, rows: list[RunComparison]) -> None:
    from xent_metrics.cli.tables import print_run, table_console

    for letter, run in (("A", first), ("B", other)):
        print_run(letter, run)
    for task in dict.fromkeys(row.task for row in rows):
        _print_task(task, [row for row in rows if row.task == task])
    table_console().print(_LEGEND, highlight=False, style="dim")
    for run in (first, other):
        print_problems(run)


def _print_task(task: str, rows: list[RunComparison]) -> None:
    from xent_metrics.cli.tables import Column, print_table, table_console

    columns = [
        Column("metric", bold=True),
        Column("A", drop=3, justify="right"),
        Column("B", drop=2, justify="right"),
        Column("B − A", justify="right"),
        Column("p", drop=1, justify="right"),
        Column("documents", drop=4, justify="right"),
        Column("better"),
    ]
    reasons = list(dict.fromkeys(row.reason for row in rows if row.reason))
    print_table(columns, [_cells(row, reasons) for row in rows], title=task)
    for number, reason in enumerate(reasons, 1):
        table_console().print(printable(f"[{number}] {reason}"), highlight=False, markup=False)


def _cells(row: RunComparison, reasons: list[str]) -> list[str]:
    from xent_metrics.cli.tables import metric_and_unit

    name = metric_and_unit(row.metric, row.unit)
    values = ["" if value is None else f"{value:.4g}" for value in (row.value_a, row.value_b)]
    result = row.result
    if result is None:
        assert row.reason is not None
        return [name, *values, "", "", "", f"not compared [{reasons.index(row.reason) + 1}]"]
    difference = f"{result.shown(result.difference)}\n{result.shown(result.low)} … {result.shown(result.high)}"
    needed = f"{result.documents_needed:,.0f}" if math.isfinite(result.documents_needed) else "∞"
    return [name, *values, difference, f"{result.p_value:.3g}", f"{result.documents:,}\n{needed}", _verdict(result)]


def _verdict(result: Comparison) -> str:
    if result.better:
        return result.better
    excludes_zero = result.low > 0 or result.high < 0
    return "–" if excludes_zero and result.p_value <= 1 - result.confidence_level else "not significant"
