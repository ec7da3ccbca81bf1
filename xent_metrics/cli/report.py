"""`xent report`: runs of lm-eval as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xent_metrics.cli.output import print_note

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; each is compared with the first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Page title.")] = "Loss report",
    domain: Annotated[str | None, typer.Option(help="Field of the documents to plot the loss by.")] = None,
) -> None:
    """Write one self-contained HTML page: values with intervals, plots, differences, and the documents token by token."""
    from xent_metrics.analysis.report import without_tokens, write_report
    from xent_metrics.analysis.runs import read_run

    read = [read_run(path) for path in runs]
    write_report(read, output, title=title, domain=domain)
    if lacking := without_tokens(read):
        print_note(lacking)
    print(output)
