"""One self-contained HTML page of runs: values with intervals, paired differences, plots, and the documents to browse.

The page loads nothing from the network and uses no library. Text of documents is untrusted: it is packed into a
compressed block that can't contain markup, the page's script only ever inserts it as text, and a content security policy
blocks every other script.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xent_metrics.analysis.intervals import delta_interval
from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS
from xent_metrics.analysis.report_documents import pack_documents
from xent_metrics.analysis.report_plots import run_color, task_plots
from xent_metrics.analysis.results_file import rescored_from
from xent_metrics.analysis.run_comparison import RunComparison
from xent_metrics.analysis.run_matrix import Pair, compare_all, run_letters
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.errors import MissingExtraError
from xent_metrics.files import replacing, require_writable_file
from xent_metrics.version import __version__

__all__ = ["without_tokens", "write_report"]


def write_report(
    runs: Sequence[Run], path: str | Path, *, title: str = "Loss report", domain: str | None = None
) -> None:
    """Write a report of one or more runs; all others are compared with the first.

    Args:
        runs: from `read_run`.
        path: the HTML file to write.
        title: the page title.
        domain: a document field; the loss is plotted by its values.

    Raises:
        MissingExtraError: jinja2, scipy or matplotlib is not installed.
        InvalidInputError: the file's folder doesn't exist.
        OSError: no file can be written there; said before anything is computed.
    """
    path = Path(path)
    require_writable_file(path)
    template = _template()
    letters = run_letters(len(runs))
    notes: list[str] = []
    compared = dict(_differences(compare_all(runs, baseline=True), notes))
    page = template.render(
        title=title,
        version=__version__,
        nonce=secrets.token_urlsafe(16),
        runs=[_run(run, letter) for run, letter in zip(runs, letters, strict=True)],
        letters=letters,
        tasks=[_task(name, found, notes, domain) for name, found in _by_task(runs, letters).items()],
        compared=compared,
        reasons=_reasons(compared),
        documents=pack_documents(runs, letters),
        without_tokens=without_tokens(runs),
        has_tokens=any(task.token_columns for run in runs for task in run.tasks.values()),
        notes=notes,
    )
    with replacing(path) as written:
        written.write_bytes(page.encode("utf-8", errors="backslashreplace"))  # a lone surrogate in a name


def without_tokens(runs: Sequence[Run]) -> str:
    """What a report of these runs lacks since tokens weren't logged, and how to have it; empty if nothing is lacking."""
    lacking = [
        letter
        for letter, run in zip(run_letters(len(runs)), runs, strict=True)
        if any(task.samples and not task.token_columns for task in run.tasks.values())
    ]
    if not lacking:
        return ""
    return (
        f"Tasks of {', '.join(lacking)} have no tokens in their samples: no coloured tokens, and no loss by position or token "
        f"frequency. To have them, {HOW_TO_LOG_TOKENS}"
    )


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report needs jinja2: pip install 'xent-metrics[analysis,plots]'") from error
    loader = jinja2.PackageLoader("xent_metrics.analysis")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2")


def _run(run: Run, letter: str) -> dict[str, Any]:
    return {
        "letter": letter,
        "color": run_color(letter),
        "model": run.model,
        "path": run.path.parent,
        "origin": rescored_from(run.results),
        "problems": run.problems,
    }


def _by_task(runs: Sequence[Run], letters: Sequence[str]) -> dict[str, dict[str, TaskRun]]:
    """For each task name, the runs of that task by the run's letter."""
    found: dict[str, dict[str, TaskRun]] = {}
    for run, letter in zip(runs, letters, strict=True):
        for task in run.tasks.values():
            found.setdefault(task.name, {})[letter] = task
    return found


def _task(name: str, runs: dict[str, TaskRun], notes: list[str], domain: str | None) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for metric in dict.fromkeys(metric for task in runs.values() for metric in task.values):
        ours = next((task.metrics[metric] for task in runs.values() if metric in task.metrics), None)
        unit = ours.value_unit if ours is not None else "lm-eval's own"
        cells = {letter: _cell(task, metric) for letter, task in runs.items() if metric in task.values}
        rows.append({"name": metric, "unit": unit, "cells": cells})
    said = dict.fromkeys(cell["note"] for row in rows for cell in row["cells"].values() if cell.get("note"))
    return {"name": name, "rows": rows, "notes": list(said), "plots": list(task_plots(runs, notes, domain))}


def _cell(task: TaskRun, name: str) -> dict[str, str]:
    """A value with lm-eval's standard error, and its interval if the documents' sums were logged."""
    metric, error = task.metrics.get(name), task.standard_errors.get(name, math.nan)
    sums = task.sums(name) if metric is not None else None
    cell = {"value": _number(task.values[name]), "error": "" if math.isnan(error) else f"± {error:.2g}", "interval": ""}
    if metric is not None and sums is not None:
        interval = delta_interval(metric, sums)
        if not math.isnan(interval.low):
            cell["interval"] = f"{_number(interval.low)} … {_number(interval.high)}"
        cell["note"] = interval.note
    return cell


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.5g}"


def _differences(pairs: Sequence[Pair], notes: list[str]) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """Each run's differences from the first, by task, metric and letter."""
    for pair in pairs:
        if pair.reason is not None:
            notes.append(f"{pair.second} is not compared with {pair.first}: {pair.reason}.")
        for row in pair.rows:
            yield (row.task, row.metric, pair.second), _difference(row, pair)


def _reasons(compared: Mapping[tuple[str, str, str], dict[str, Any]]) -> dict[str, list[str]]:
    """Why metrics aren't compared, by task, each reason once."""
    found: dict[str, list[str]] = {}
    for (task, _, _), difference in compared.items():
        reason = difference["reason"]
        if reason and reason not in found.setdefault(task, []):
            found[task].append(reason)
    return {task: reasons for task, reasons in found.items() if reasons}


def _difference(row: RunComparison, pair: Pair) -> dict[str, Any]:
    if row.result is None:
        return {"reason": row.reason}
    result = row.result
    needed = f"{result.documents_needed:,.0f}" if math.isfinite(result.documents_needed) else "∞"
    return {
        "reason": None,
        "difference": result.shown(result.difference, 4),
        "interval": f"{result.shown(result.low)} … {result.shown(result.high)}",
        "p": f"{result.p_value:.3g}",
        "p_holm": f"{result.p_holm:.3g}",
        "documents": f"{result.documents:,}",
        "needed": needed,
        "better": pair.letter_of(result.better) or "—",
    }
