"""What the pages of documents show: a task of a run with all of its documents, and one document token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from xent_metrics.analysis.intervals import Interval, delta_interval
from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS, Tokens, choices_in, context_in, text_in
from xent_metrics.analysis.runs import TaskRun
from xent_metrics.analysis.samples import Sample
from xent_metrics.analysis.token_view import by_frequency, by_position
from xent_metrics.errors import ComparisonError
from xent_metrics.metrics import CrossEntropy
from xent_metrics.view.charts import Chart, Point, Series, chart
from xent_metrics.view.folder import OpenedTask, RunFolder
from xent_metrics.view.links import PageNotFoundError, page_name, slug
from xent_metrics.view.summaries import RunSummary
from xent_metrics.view.tables import number, run_cells

__all__ = [
    "DOCUMENTS_PER_PAGE",
    "LEVELS",
    "LONGEST_TEXT",
    "beginning",
    "document",
    "documents",
    "loss_and_alternatives",
    "token_level",
]

DOCUMENTS_PER_PAGE = 100
#: Classes h0 to h15 of the style sheet colour tokens by their loss, up to so many nats.
LEVELS, _HOT = 16, 8.0
LONGEST_TEXT = 20_000  # characters of one document
_START = 80  # characters of a document in the list


def documents(folder: RunFolder, run: RunSummary, name: str, page: int, most: int | None) -> dict[str, Any]:
    """A task of a run: values with intervals, the loss by position and frequency, and its documents.

    Args:
        folder: of the run.
        run: one of its runs.
        name: of the task.
        page: of the documents, from 1 on.
        most: how many documents are shown, from the highest loss down; None for all.

    Raises:
        ComparisonError: the samples can't be read.
    """
    opened = folder.task(run, name)
    task, ranks = opened.task, range(len(opened.ranking))[:most]
    start, pages = (page - 1) * DOCUMENTS_PER_PAGE, max(1, math.ceil(len(ranks) / DOCUMENTS_PER_PAGE))
    return {
        "run": run_cells(run),
        "task": (name, page_name("task", slug(name))),
        "problems": opened.run.problems,
        "values": [_value(task, key) for key in task.values],
        "charts": list(_charts(task)),
        "rows": [_row(run, opened, rank) for rank in ranks[start : start + DOCUMENTS_PER_PAGE]],
        "shown": len(ranks),
        "documents": len(task.samples),
        "how_to_log_tokens": HOW_TO_LOG_TOKENS,
        "pages": [(each, _page_of_documents(run, name, each)) for each in range(1, pages + 1)],
        "page": page,
    }


def _page_of_documents(run: RunSummary, task: str, page: int) -> str:
    return page_name("documents", run.slug, slug(task), *([str(page)] if page > 1 else []))


def _value(task: TaskRun, key: str) -> dict[str, Any]:
    """A value with the interval over its documents, or the reason why there is none."""
    metric, sums = task.metrics.get(key), None
    if metric is not None:
        sums = task.sums(key)
    row = {"metric": key, "unit": metric.value_unit if metric else "lm-eval's own", "value": number(task.values[key])}
    if metric is None or sums is None:
        own = (
            "it is lm-eval's own, and not the mean of its logged samples"
            if metric is None
            else "some samples lack its sums"
        )
        return row | {"reason": task.why_unusable(key) or own}
    found = delta_interval(metric, sums)
    missing = math.isnan(found.low)
    return row | {
        "reason": "no interval: it needs two documents, and a metric with a standard error" if missing else None,
        "error": "" if math.isnan(found.standard_error) else f"± {found.standard_error:.2g}",
        "interval": "" if missing else f"{number(found.low)} … {number(found.high)}",
        "note": found.note,
    }


def _charts(task: TaskRun) -> Iterator[Chart]:
    """The loss by position and by frequency, if tokens were logged."""
    for title, x_label, group in (
        ("Loss by position", "position of the token in the document or answer", by_position),
        ("Loss by token frequency", "occurrences of the token in these documents", by_frequency),
    ):
        try:
            labels, intervals = group(task)
        except ComparisonError:  # no tokens
            return
        points = [_point(place, label, each) for place, (label, each) in enumerate(zip(labels, intervals, strict=True))]
        drawn = chart([Series("", points)], title=title, x_label=x_label, unit=CrossEntropy.value_unit, labels=labels)
        if drawn is not None:
            yield drawn


def _point(place: int, label: str, found: Interval) -> Point:
    text = f"{label}: {number(found.value)} ({number(found.low)} … {number(found.high)})"
    return Point(place, found.value, found.low, found.high, text)


def _row(run: RunSummary, opened: OpenedTask, rank: int) -> dict[str, Any]:
    task, ranking = opened.task, opened.ranking
    sample = task.samples[ranking.places[0, rank]]
    return {
        "href": page_name("document", run.slug, slug(task.name), ranking.slug(rank)),
        "number": str(sample.raw.get("doc_id", "")),
        "loss": number(ranking.losses[0, rank]),
        "tokens": len(sample.tokens) if sample.tokens else "",
        "text": beginning(sample),
    }


def beginning(sample: Sample) -> str:
    """What a document begins with, to tell it from others in a list."""
    text = sample.tokens.text if sample.tokens else text_in(sample.raw)
    return text.strip()[:_START] or "(empty)"


def document(folder: RunFolder, run: RunSummary, name: str, wanted: str, most: int | None) -> dict[str, Any]:
    """One document: its context, its tokens by loss, and its choices. `wanted` is its slug.

    Raises:
        PageNotFoundError: the run has no such document.
        ComparisonError: the samples can't be read.
    """
    opened = folder.task(run, name)
    ranking = opened.ranking
    rank = ranking.rank(wanted)
    if rank is None or (most is not None and rank >= most):
        raise PageNotFoundError(f"{run.name} has no such document of {name}")
    sample = opened.task.samples[ranking.places[0, rank]]
    near = {
        side: page_name("document", run.slug, slug(name), other) if other else ""
        for side, other in ranking.neighbours(rank, most).items()
    }
    tokens = sample.tokens
    return near | {
        "run": run_cells(run),
        "task": (name, page_name("documents", run.slug, slug(name))),
        "number": str(sample.raw.get("doc_id", "")),
        "loss": number(ranking.losses[0, rank]),
        "context": context_in(sample.raw)[-LONGEST_TEXT:],
        "tokens": list(_tokens(tokens)) if tokens else [],
        "text": "" if tokens else text_in(sample.raw)[:LONGEST_TEXT],
        "how_to_log_tokens": HOW_TO_LOG_TOKENS,
        "cut": (len(tokens) if tokens else len(text_in(sample.raw))),
        "choices": [
            {"text": choice.text, "is_gold": choice.is_gold, "loglikelihood": number(choice.loglikelihood)}
            for choice in choices_in(sample.raw)
        ],
    }


def token_level(nll: float) -> str:
    """The class that colours a token by its loss in nats.

    >>> token_level(0.0), token_level(4.0), token_level(50.0), token_level(float("nan"))
    ('h0', 'h8', 'h15', 'hn')
    """
    return "hn" if math.isnan(nll) else f"h{round((LEVELS - 1) * min(max(nll, 0.0) / _HOT, 1.0))}"


def _tokens(tokens: Tokens) -> Iterator[tuple[str, str, str]]:
    """Each token's text, class and what is said of it, as far as `LONGEST_TEXT` goes."""
    total = 0
    for place, (text, nll) in enumerate(zip(tokens.texts, tokens.nll, strict=True)):
        total += len(text)
        if total > LONGEST_TEXT:
            return
        yield text, token_level(nll), f'"{text}": {loss_and_alternatives(tokens, place)}'


def loss_and_alternatives(tokens: Tokens, place: int) -> str:
    """What is said of a token: its loss, its probability, and likely alternatives, if they were logged."""
    nll = tokens.nll[place]
    said = "nan" if math.isnan(nll) else f"{nll:.2f} nats, probability {100 * math.exp(-nll):.2f} %"
    alternatives = tokens.alternatives[place] if place < len(tokens.alternatives) else []
    likely = "   ".join(f'"{other}" {100 * share:.1f} %' for other, share in alternatives)
    return said + (f"\nlikely: {likely}" if likely else "")
