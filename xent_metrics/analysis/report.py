"""One self-contained HTML page of runs: values with intervals, pictures, paired differences, and the documents to browse.

No network, no library in the page. Text of documents is data: it is compressed into a block that can't hold markup, and
the page's script only ever makes text of it; a content security policy lets nothing else run.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import exact_sum
from ..errors import ComparisonError, MissingExtraError
from ..metrics import CrossEntropy, ExpectedCalibrationError
from . import plots
from .intervals import Interval, delta_interval
from .run_comparison import compare_runs
from .runs import Run, Sample, TaskRun
from .token_view import by_domain, by_frequency, by_position, tokens_of

__all__ = ["write_report"]

_LONGEST = 20_000  # characters of a document that are shown


def write_report(
    runs: Sequence[Run], path: str | Path, *, title: str = "Loss report", domain: str | None = None
) -> None:
    """Write the page for one or more runs; the others are compared with the first.

    Args:
        runs: from `read_run`.
        path: the HTML file.
        domain: a field of the documents by whose value the loss is drawn.

    Raises:
        MissingExtraError: jinja2, scipy or matplotlib is not installed.
    """
    from .. import __version__

    letters = [chr(ord("A") + i) for i in range(len(runs))]
    documents = _documents(runs, letters)
    page = _template().render(
        title=title,
        version=__version__,
        nonce=secrets.token_urlsafe(16),
        runs=[_run(run, letter, domain) for run, letter in zip(runs, letters, strict=True)],
        comparisons=[
            row for run, letter in zip(runs[1:], letters[1:], strict=True) for row in _compared(runs[0], run, letter)
        ],
        num_documents=len(documents),
        has_alternatives=any("alternatives" in document for document in documents),
        data=_packed(documents),
    )
    Path(path).write_text(page, encoding="utf-8")


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report needs jinja2: pip install 'xent-metrics[analysis,plots]'") from error
    loader = jinja2.PackageLoader("xent_metrics.analysis")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "report.html.j2"
    )


def _packed(documents: list[dict[str, Any]]) -> str:
    """JSON in gzip in base64: letters, digits, + and / alone."""
    plain = json.dumps(documents, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    return base64.b64encode(gzip.compress(plain, mtime=0)).decode("ascii")


def _run(run: Run, letter: str, domain: str | None) -> dict[str, Any]:
    tasks = [
        {"name": task.name, "rows": list(_rows(task)), "pictures": list(_pictures(task, domain))}
        for task in run.tasks.values()
    ]
    return {
        "letter": letter,
        "model": run.model,
        "path": str(run.path.parent),
        "problems": run.problems,
        "tasks": tasks,
    }


def _rows(task: TaskRun) -> Iterator[dict[str, str]]:
    for name, value in task.values.items():
        metric = task.metrics.get(name)
        states = task.states(name) if metric is not None else None
        interval = delta_interval(metric, states) if metric is not None and states is not None else None
        error = task.standard_errors.get(name, math.nan)
        yield {
            "name": name,
            "value": _number(value),
            "error": _number(error),
            "interval": f"{_number(interval.low)} … {_number(interval.high)}" if interval else "",
            "unit": metric.value_unit if metric is not None else "lm-eval's own",
        }


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.5g}"


@dataclass(frozen=True)
class _Picture:
    label: str
    svg: Any


def _pictures(task: TaskRun, domain: str | None) -> Iterator[_Picture]:
    for name, metric in task.metrics.items():
        states = (
            task.states(name) if isinstance(metric, ExpectedCalibrationError) and metric.binning == "width" else None
        )
        if states is not None:
            assert isinstance(metric, ExpectedCalibrationError)
            bins = metric.bins(metric.unpack(exact_sum.to_float(exact_sum.merge(states))))
            yield _drawn("Reliability diagram", lambda f, b=bins: plots.draw_reliability(*plots.reliability_axes(f), b))
            break
    if any(tokens_of(sample) for sample in task.samples):
        place = "the token's place in its document"
        yield _of_groups("Loss by position", place, *by_position(task))
        yield _of_groups("Loss by token frequency", "occurrences of the token in these documents", *by_frequency(task))
    if domain is not None:
        measured = next((name for name in task.metrics if task.states(name) is not None), None)
        if measured is not None:
            labels, intervals = by_domain(task, measured, domain)
            unit = task.metrics[measured].value_unit
            yield _of_groups(f"{measured} by {domain}", domain, labels, intervals, unit=unit)


def _of_groups(
    title: str, xlabel: str, labels: list[str], intervals: list[Interval], unit: str = CrossEntropy.value_unit
) -> _Picture:
    values = [i.value for i in intervals]
    halves = [
        [i.value - i.low for i in intervals],
        [i.high - i.value for i in intervals],
    ]  # not the same for perplexities
    halves = [[half if math.isfinite(half) else 0.0 for half in side] for side in halves]
    return _drawn(
        title,
        lambda f: plots.draw_by_group(f.add_subplot(), labels, values, halves, title=title, unit=unit, xlabel=xlabel),
    )


def _drawn(label: str, draw: Any) -> _Picture:
    """A picture as SVG that takes the page's own ink, in light and dark."""
    from markupsafe import Markup

    buffer = io.StringIO()
    with plots.figure(buffer, format="svg") as drawn:
        drawn.patch.set_alpha(0)
        draw(drawn)
        for axes in drawn.axes:
            axes.patch.set_alpha(0)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor")
    return _Picture(label, Markup(svg))


def _compared(first: Run, other: Run, letter: str) -> Iterator[dict[str, Any]]:
    try:
        rows = compare_runs(first, other, num_resamples=1999)
    except ComparisonError as error:
        yield {"task": "all", "metric": "all", "letter": letter, "reason": str(error)}
        return
    for row in rows:
        shown: dict[str, Any] = {"task": row.task, "metric": row.metric, "letter": letter, "reason": row.reason}
        if row.result is not None:
            result = row.result
            better = {"A": "A", "B": letter}.get(result.better or "", "not shown")
            shown |= {
                "difference": _number(result.difference),
                "interval": f"{_number(result.low)} … {_number(result.high)}",
                "p": f"{result.p_value:.3g}",
                "documents": result.documents,
                "needed": f"{result.documents_needed:,.0f}",
                "better": better,
            }
        yield shown


def _documents(runs: Sequence[Run], letters: Sequence[str]) -> list[dict[str, Any]]:
    """What the page shows of each document, the highest loss first."""
    found = [
        (*_document(sample, f"{letter} {task.name}"), index)
        for run, letter in zip(runs, letters, strict=True)
        for task in run.tasks.values()
        for index, sample in enumerate(task.samples)
    ]
    found.sort(key=lambda entry: -entry[0])
    return [{**document, "name": f"{document['name']} #{index}"} for _, document, index in found]


def _document(sample: Sample, run: str) -> tuple[float, dict[str, Any]]:
    tokens = tokens_of(sample)
    if not tokens:
        values = [v for k, v in sample.raw.items() if f"{k}_stderr" in sample.raw and isinstance(v, int | float)]
        loss = float(values[0]) if values and math.isfinite(values[0]) else 0.0
        text = _text(sample)[:_LONGEST]
        return loss, {"run": run, "loss": f"{loss:.3f}", "name": text[:60].strip(), "text": text}
    loss = math.fsum(token.nll for token in tokens) / len(tokens)
    ends, texts, length = [], [], 0
    for token in tokens:
        length += _utf16_length(token.text)
        ends.append(length)
        texts.append(token.text)
        if length > _LONGEST:
            break
    text = "".join(texts)
    shown: dict[str, Any] = {"run": run, "loss": f"{loss:.3f}", "name": text[:60].strip(), "text": text}
    shown |= {"ends": ends, "nll": [round(min(token.nll, 1e9), 3) for token in tokens[: len(ends)]]}
    if any(token.alternatives for token in tokens):
        shown["alternatives"] = [
            [[text, round(prob, 4)] for text, prob in token.alternatives] for token in tokens[: len(ends)]
        ]
    return loss, shown


def _utf16_length(text: str) -> int:
    """A string's length as JavaScript counts it."""
    return len(text.encode("utf-16-le", errors="replace")) // 2


def _text(sample: Sample) -> str:
    arguments = sample.raw.get("arguments")
    if isinstance(arguments, dict):
        first: Any = next(iter(arguments.values()), {})
        return " ".join(str(value) for value in first.values()) if isinstance(first, dict) else str(first)
    return str(sample.raw.get("doc", ""))
