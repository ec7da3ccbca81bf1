"""Runs and models against each other, with the uncertainty beside each number: `xent compare`, `intervals` …."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xent_metrics.cli.tables import table_console

if TYPE_CHECKING:
    from xent_metrics.analysis.run_comparison import RunComparison
    from xent_metrics.analysis.runs import Run
    from xent_metrics.hosts.model_pair import Finding

__all__ = ["compare", "compare_models", "intervals", "report"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; each is compared with the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    num_resamples: Annotated[int, typer.Option(help="Of the permutation test.", min=99)] = 9999,
    shared_documents: Annotated[
        bool, typer.Option("--shared-documents", help="Compare on the documents that both runs have, if they differ.")
    ] = False,
) -> None:
    """Compare runs on the same documents: difference, 95 % interval, p value, documents that would show it."""
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
        print(json.dumps(_as_json(first, found), indent=2, ensure_ascii=False))
        return
    for other, rows in found:
        _print(first, other, rows)


def compare_models(
    base: Annotated[str, typer.Argument(help="The folder (or name) of a Hugging Face causal model and its tokenizer.")],
    other: Annotated[str, typer.Argument(help="That of the model to be held against it: quantised, pruned, tuned …")],
    text: Annotated[list[Path], typer.Option(help="A file of UTF-8 text; may be given again.")],
    tokenizer: Annotated[str | None, typer.Option(help="Another tokenizer than the base's.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens that the models read at once.", min=2)] = 512,
    batch_size: Annotated[int, typer.Option(help="Windows at once.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …; by default a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the models; auto is what they were saved in.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say how far a model is from its base on a text: KL divergence and its quantiles, perplexity ratio, same top tokens."""
    from xent_metrics.hosts.model_pair import compare_models as measured

    found = measured(
        base, other, text, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, device=device, dtype=dtype
    )
    if as_json:
        print(json.dumps([_finite(asdict(finding)) for finding in found], indent=2, ensure_ascii=False))
    else:
        _print_findings(base, other, found)


def intervals(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders, written with --log_samples.")],
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="By the cluster bootstrap, not the delta method.")
    ] = False,
    num_resamples: Annotated[int, typer.Option(help="Of the bootstrap.", min=99)] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Give each value of a run its standard error and 95 % interval over documents."""
    from xent_metrics.analysis.intervals import bootstrap as resampled
    from xent_metrics.analysis.intervals import delta_interval
    from xent_metrics.analysis.runs import read_run

    found = []
    for run in map(read_run, runs):
        for task in run.tasks.values():
            for name, metric in task.metrics.items():
                states = task.states(name)
                if states is not None:
                    interval = (
                        resampled(metric, states, num_resamples=num_resamples)
                        if bootstrap
                        else delta_interval(metric, states)
                    )
                    where = {"run": str(run.path.parent), "task": task.name, "metric": name, "unit": metric.value_unit}
                    found.append(where | asdict(interval) | {"documents": len(states)})
        for problem in run.problems:
            Console(stderr=True).print(escape(f"{run.path.parent}: {problem}"), highlight=False)
    if as_json:
        print(json.dumps([_finite(row) for row in found], indent=2, ensure_ascii=False))
        return
    table = Table("task", "metric", "value", "± s.e.", "95 % interval", "documents", show_lines=True)
    for row in found:
        name = _named(row["metric"], row["unit"])
        bounds = f"{row['low']:.4g} … {row['high']:.4g}"
        table.add_row(
            escape(row["task"]),
            name,
            f"{row['value']:.5g}",
            f"{row['standard_error']:.2g}",
            bounds,
            f"{row['documents']:,}",
        )
    table_console().print(table)


def report(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; the others are compared with the first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Loss report",
    domain: Annotated[str | None, typer.Option(help="A field of the documents by which to draw the loss.")] = None,
) -> None:
    """Write one self-contained page: values with intervals, pictures, differences, and the documents, token by token."""
    from xent_metrics.analysis.report import write_report
    from xent_metrics.analysis.runs import read_run

    write_report([read_run(path) for path in runs], output, title=title, domain=domain)
    print(output)


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def _print_findings(base: str, other: str, found: list[Finding]) -> None:
    names = {"base": "base", "other": "other", "both": "other against base"}
    table = Table("of", "what", "value", "± s.e.", "unit", title=escape(f"base: {base}\nother: {other}"))
    for place, finding in enumerate(found):
        is_last = place + 1 == len(found) or found[place + 1].of != finding.of
        error = "" if math.isnan(finding.standard_error) else f"{finding.standard_error:.2g}"
        row = [names[finding.of], finding.name, f"{finding.value:.6g}", error, finding.unit]
        table.add_row(*row, end_section=is_last)
    table_console().print(table)


def _as_json(first: Run, found: list[tuple[Run, list[RunComparison]]]) -> list[dict[str, Any]]:
    return [
        {
            "a": str(first.path),
            "b": str(other.path),
            "problems": [*first.problems, *other.problems],
            "comparisons": [
                {
                    "task": row.task,
                    "metric": row.metric,
                    "unit": row.unit,
                    "reason": row.reason,
                    "value_a": row.value_a,
                    "value_b": row.value_b,
                }
                | (row.result.to_json() if row.result else {})
                for row in rows
            ],
        }
        for other, rows in found
    ]


def _print(first: Run, other: Run, rows: list[RunComparison]) -> None:
    console = table_console()
    console.print(f"A: {escape(first.model)} ({escape(str(first.path.parent))})", highlight=False, soft_wrap=True)
    console.print(f"B: {escape(other.model)} ({escape(str(other.path.parent))})", highlight=False, soft_wrap=True)
    for task in dict.fromkeys(row.task for row in rows):
        table = Table("metric", title=escape(task), title_justify="left", title_style="bold", show_lines=True)
        for header in ("A", "B", "B − A", "p", "documents"):
            table.add_column(header, justify="right")
        table.add_column("better")
        for row in rows:
            if row.task == task:
                table.add_row(*_cells(row))
        console.print(table)
    console.print(
        "B − A: with its 95 % interval over documents. p: of a permutation test. documents: compared, and how many would "
        "show a difference of this size (80 % power at 5 %). better: whose interval leaves 0 out.",
        highlight=False, style="dim",
    )  # fmt: skip
    for run in (first, other):
        for problem in run.problems:
            Console(stderr=True).print(escape(f"{run.path.parent}: {problem}"), highlight=False)


def _named(metric: str, unit: str) -> str:
    """In words, which fold where a name would be cut off."""
    return f"[bold]{escape(metric.replace('_', ' '))}[/]\n{escape(unit)}".strip()


def _cells(row: RunComparison) -> list[str]:
    name = _named(row.metric, row.unit)
    values = [f"{row.value_a:.4g}", "" if row.value_b is None else f"{row.value_b:.4g}"]
    result = row.result
    if result is None:
        return [name, *values, "", "", "", escape(f"not compared: {row.reason}")]
    difference = f"{result.shown(result.difference)}\n{result.shown(result.low)} … {result.shown(result.high)}"
    needed = f"{result.documents:,}\n" + (
        f"{result.documents_needed:,.0f}" if math.isfinite(result.documents_needed) else "∞"
    )
    verdict = f"[bold]{result.better}[/]" if result.better else "not shown"
    return [name, *values, difference, f"{result.p_value:.3g}", needed, verdict]
