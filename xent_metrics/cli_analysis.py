"""Runs and models against each other, with the uncertainty beside each number: `xent compare`, `compare-models`, `report`."""

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

if TYPE_CHECKING:
    from .analysis.run_comparison import RunComparison
    from .analysis.runs import Run
    from .hosts.model_pair import Finding

__all__ = ["compare", "compare_models", "report"]


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
    from .hosts.model_pair import compare_models as measured

    found = measured(
        base, other, text, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, device=device, dtype=dtype
    )
    if as_json:
        print(json.dumps([_finite(asdict(finding)) for finding in found], indent=2, ensure_ascii=False))
    else:
        _print_findings(base, other, found)


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
    Console().print(table)


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
