"""What the pages of two runs' documents show: all documents by their difference of loss, and one of them token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS, Tokens, context_in
from xent_metrics.analysis.samples import Sample
from xent_metrics.view.documents import (
    DOCUMENTS_PER_PAGE,
    LEVELS,
    LONGEST_TEXT,
    beginning,
    loss_and_alternatives,
)
from xent_metrics.view.folder import OpenedTask, RunFolder
from xent_metrics.view.links import PageNotFoundError, page_name, slug
from xent_metrics.view.ranking import Ranking
from xent_metrics.view.summaries import RunSummary
from xent_metrics.view.tables import number, run_cells

__all__ = ["document_pair", "document_pairs", "token_change"]

_APART = 4.0  # nats at which the colour of a difference saturates


@dataclass(frozen=True)
class _Pairs:
    """The documents of a task that two runs share, the largest difference of their losses first."""

    a: OpenedTask
    b: OpenedTask

    @cached_property
    def ranking(self) -> Ranking:
        return Ranking.by_difference(self.a.ranking, self.b.ranking)

    def samples(self, rank: int) -> tuple[Sample, Sample]:
        first, second = self.ranking.places[:, rank]
        return self.a.task.samples[first], self.b.task.samples[second]

    def cells(self, rank: int) -> dict[str, Any]:
        """The losses of a document and their difference, as they are shown."""
        a, b = self.ranking.losses[:, rank]
        return {"losses": [number(a), number(b)], "difference": _signed(b - a)}


def document_pairs(
    folder: RunFolder, a: RunSummary, b: RunSummary, name: str, page: int, most: int | None
) -> dict[str, Any]:
    """The documents of a task that two runs share, the largest differences of their losses first.

    Args:
        folder: of the runs.
        a: the chosen run.
        b: the run that it is compared with.
        name: of the task.
        page: of the documents, from 1 on.
        most: how many documents are shown, from the largest difference down; None for all.

    Raises:
        ComparisonError: the samples can't be read.
    """
    pairs = _Pairs(folder.task(a, name), folder.task(b, name))
    ranks = range(len(pairs.ranking))[:most]
    start, pages = (page - 1) * DOCUMENTS_PER_PAGE, max(1, math.ceil(len(ranks) / DOCUMENTS_PER_PAGE))
    return _heading(a, b, name) | {
        "rows": [_row(a, b, pairs, rank) for rank in ranks[start : start + DOCUMENTS_PER_PAGE]],
        "shown": len(ranks),
        "shared": len(pairs.ranking),
        "in_each": (len(pairs.a.ranking), len(pairs.b.ranking)),
        "pages": [(each, _page(a, b, name, each)) for each in range(1, pages + 1)],
        "page": page,
    }


def document_pair(
    folder: RunFolder, a: RunSummary, b: RunSummary, name: str, wanted: str, most: int | None
) -> dict[str, Any]:
    """One document in two runs: its tokens by the difference of their losses. `wanted` is its slug.

    Raises:
        PageNotFoundError: the runs have no such document in common.
        ComparisonError: the samples can't be read.
    """
    pairs = _Pairs(folder.task(a, name), folder.task(b, name))
    rank = pairs.ranking.rank(wanted)
    if rank is None or (most is not None and rank >= most):
        raise PageNotFoundError(f"{a.name} and {b.name} have no such document of {name} in common")
    near = {
        side: page_name("pair", a.slug, b.slug, slug(name), other) if other else ""
        for side, other in pairs.ranking.neighbours(rank, most).items()
    }
    samples = pairs.samples(rank)
    of_a, of_b = (sample.tokens for sample in samples)
    return _heading(a, b, name) | near | pairs.cells(rank) | {
        "task": (name, _page(a, b, name, 1)),
        "number": str(samples[0].raw.get("doc_id", "")),
        "context": context_in(samples[0].raw)[-LONGEST_TEXT:],
        "how_to_log_tokens": HOW_TO_LOG_TOKENS,
        "logged": bool(of_a and of_b),
        "tokens": list(_tokens(of_a, of_b)) if of_a and of_b and list(of_a.texts) == list(of_b.texts) else [],
        "cut": len(of_a or ()),
        "documents": [page_name("document", run.slug, slug(name), wanted) for run in (a, b)] if most is None else [],
    }  # fmt: skip


def _heading(a: RunSummary, b: RunSummary, name: str) -> dict[str, Any]:
    return {"a": run_cells(a), "b": run_cells(b), "task": (name, page_name("against", a.slug, slug(name)))}


def _page(a: RunSummary, b: RunSummary, task: str, page: int) -> str:
    return page_name("pairs", a.slug, b.slug, slug(task), *([str(page)] if page > 1 else []))


def _row(a: RunSummary, b: RunSummary, pairs: _Pairs, rank: int) -> dict[str, Any]:
    sample, _ = pairs.samples(rank)
    return pairs.cells(rank) | {
        "href": page_name("pair", a.slug, b.slug, slug(pairs.a.task.name), pairs.ranking.slug(rank)),
        "number": str(sample.raw.get("doc_id", "")),
        "text": beginning(sample),
    }


def _signed(difference: float) -> str:
    return "—" if math.isnan(difference) else f"{difference:+.4g}".replace("-", "−")


def token_change(difference: float) -> str:
    """The class that colours a token by the difference of its losses in nats: l for lower, h for higher.

    >>> token_change(-2.0), token_change(0.0), token_change(50.0), token_change(float("nan"))
    ('l8', 'h0', 'h15', 'hn')
    """
    if math.isnan(difference):
        return "hn"
    level = round((LEVELS - 1) * min(abs(difference) / _APART, 1.0))
    return f"l{level}" if level and difference < 0 else f"h{level}"


def _tokens(a: Tokens, b: Tokens) -> Iterator[tuple[str, str, str]]:
    """Each token's text, class and what is said of it in both runs, as far as `LONGEST_TEXT` goes."""
    total = 0
    for place, (text, nll_a, nll_b) in enumerate(zip(a.texts, a.nll, b.nll, strict=True)):
        total += len(text)
        if total > LONGEST_TEXT:
            return
        difference = nll_b - nll_a
        said = [f'"{text}": {_signed(difference)} nats']
        said += [f"{letter}: {loss_and_alternatives(tokens, place)}" for letter, tokens in (("A", a), ("B", b))]
        yield text, token_change(difference), "\n".join(said)
