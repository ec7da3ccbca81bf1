"""`xent report`: runs of lm-eval as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders; each is compared with the first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Page title.")] = "Loss report",
    domain: Annotated[str | None, typer.Option(help="Field of the documents to plot the loss by.")] = None,
) -> None:
    """Write one self-contained HTML page: values with intervals, plots, differences, and the documents token by token."""
    from xent_metrics.analysis.report import write_report
    from xent_metrics.analysis.runs import read_run

    write_report([read_run(path) for path in runs], output, title=title, domain=domain)
    print(output)
