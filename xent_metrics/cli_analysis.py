"""`xent compare` and `xent report`: runs of lm-eval against each other, with the uncertainty beside each difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .analysis.run_comparison import RunComparison
    from .analysis.runs import Run

__all__ = ["compare", "report"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; each is compared with the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    num_resamples: Annotated[int, typer.Option(help="Of the permutation test.", min=99)] = 9999,
) -> None:
    """Compare runs on the same documents: difference, 95 % interval, p value, documents that would show it."""
    from .analysis.run_comparison import compare_runs
    from .analysis.runs import read_run
    from .errors import ComparisonError

    if len(runs) < 2:
        raise ComparisonError(f"xent compare takes two or more runs; got {len(runs)}")
    first, *others = [read_run(path) for path in runs]
    found = [(other, compare_runs(first, other, num_resamples=num_resamples)) for other in others]
    if as_json:
        print(json.dumps(_as_json(first, found), indent=2, ensure_ascii=False))
        return
    for other, rows in found:
        _print(first, other, rows)


def report(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; the others are compared with the first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Loss report",
    domain: Annotated[str | None, typer.Option(help="A field of the documents by which to draw the loss.")] = None,
) -> None:
    """Write one self-contained page: values with intervals, pictures, differences, and the documents, token by token."""
    from .analysis.report import write_report
    from .analysis.runs import read_run

    write_report([read_run(path) for path in runs], output, title=title, domain=domain)
    print(output)


def _as_json(first: Run, found: list[tuple[Run, list[RunComparison]]]) -> list[dict[str, Any]]:
    return [
        {
            "a": str(first.path),
            "b": str(other.path),
            "problems": [*first.problems, *other.problems],
            "comparisons": [
                {"task": row.task, "metric": row.metric, "unit": row.unit, "reason": row.reason}
                | (row.result.to_json() if row.result else {})
                for row in rows
            ],
        }
        for other, rows in found
    ]


def _print(first: Run, other: Run, rows: list[RunComparison]) -> None:
    console = Console()
    table = Table(
        "task", "metric", "A", "B", "B − A", "95 % interval", "p", "documents", "needed", "better",
        title=escape(f"A: {first.model} ({first.path.parent})\nB: {other.model} ({other.path.parent})"),
    )  # fmt: skip
    for row in rows:
        name = escape(f"{row.metric}\n{row.unit}".strip())
        result = row.result
        if result is None:
            table.add_row(escape(row.task), name, *[""] * 7, escape(f"not compared: {row.reason}"))
            continue
        values = [f"{value:.4g}" for value in (result.value_a, result.value_b, result.difference)]
        interval = f"{result.low:.3g} … {result.high:.3g}"
        verdict = f"[bold]{result.better}[/]" if result.better else "not shown"
        counts = f"{result.documents:,}", f"{result.documents_needed:,.0f}"
        table.add_row(escape(row.task), name, *values, interval, f"{result.p_value:.3g}", *counts, verdict)
    console.print(table)
    for run in (first, other):
        for problem in run.problems:
            Console(stderr=True).print(escape(f"{run.path.parent}: {problem}"), highlight=False)
