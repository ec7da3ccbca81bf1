"""`xent explain`: what is known of a metric, or of an error by its code, which needs no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import AsJson, print_json, printable
from xent_metrics.cli.plugin_commands import loaded_plugins

if TYPE_CHECKING:
    from xent_metrics.explain.errors import ErrorFacts
    from xent_metrics.explain.metrics import MetricFacts

__all__ = ["explain"]


def explain(
    what: Annotated[str, typer.Argument(help="A metric, such as bits_per_byte, or an error's code, such as E007.")],
    as_json: AsJson = False,
) -> None:
    """Explain a metric (formula, unit, use, options, models that can give it) or an error (cause, cure, example)."""
    from xent_metrics.explain.errors import error_facts, find_error, is_error

    if is_error(what):
        error = error_facts(find_error(what))
        lines = _error_lines(error)
        found, title = asdict(error), f"{error.code} {error.name}"
    else:
        from xent_metrics.explain.metrics import metric_facts

        metric = metric_facts(loaded_plugins().metric_class(what))
        lines = _metric_lines(metric)
        found, title = asdict(metric), metric.name
    if as_json:
        print_json([found])
    else:
        _print(title, found["summary"], lines)


def _error_lines(facts: ErrorFacts) -> dict[str, str]:
    return {"cause": facts.cause, "cure": facts.cure, "example": facts.example}


def _metric_lines(facts: MetricFacts) -> dict[str, str]:
    from xent_metrics.explain.metrics import SCORES

    return {
        "formula": facts.formula,
        "unit": facts.unit,
        "better": facts.better,
        "use": facts.use_when,
        "hides": facts.hides,
        "options": "\n".join(f"{each.name}={each.default}  {each.meaning}" for each in facts.options),
        "needs": "\n".join(f"{name}: {SCORES.get(name, 'a score of its own')}" for name in facts.needs),
        "given by": "\n".join(host for host, able in facts.hosts.items() if able),
        "not by": "\n".join(host for host, able in facts.hosts.items() if not able),
        "reference": facts.reference,
        "class": facts.import_path,
        "example": facts.example,
    }


def _print(title: str, summary: str, lines: dict[str, str]) -> None:
    """Print the title, the summary and, indented, a paragraph for each label; those without text are left out."""
    from rich.table import Table
    from rich.text import Text

    from xent_metrics.cli.tables import table_console

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines.items():
        if text:
            table.add_row(f"  {label}", Text(printable(text)))
    table_console().print(Text(printable(title), style="bold"), Text(printable(summary)), table, sep="\n")
