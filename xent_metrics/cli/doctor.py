"""`xent doctor`: what is wrong with the installation, with task configurations or with runs, and how to fix it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import typer

from xent_metrics.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from xent_metrics.doctor.findings import Finding

__all__ = ["doctor"]


def doctor(as_json: AsJson = False) -> None:
    """Check the installation.

    The exit status is 1 if there are errors among the findings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plugins that are set aside are among the findings
        found = _installation()
    if as_json:
        print_json([vars(each) for each in found])
    else:
        _print(found)
    if any(each.severity == "error" for each in found):
        raise typer.Exit(1)


def _installation() -> list[Finding]:
    from xent_metrics.doctor.installation import check_installation

    return check_installation()


def _print(found: list[Finding]) -> None:
    """Print each finding: its severity, kind and place on one line, and what it says below."""
    from rich.padding import Padding
    from rich.text import Text

    from xent_metrics.cli.output import printable
    from xent_metrics.cli.tables import table_console
    from xent_metrics.doctor.findings import SEVERITIES, counted

    console, styles = table_console(), {"error": "bold red", "warning": "bold yellow", "note": "dim"}
    for each in sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)):
        head = Text.assemble((each.severity, styles[each.severity]), f" {each.kind}: ", (printable(each.place), "bold"))
        console.print(head, Padding(Text(printable(each.text), overflow="fold"), (0, 0, 0, 2), expand=False), sep="\n")
    console.print(counted(found))
