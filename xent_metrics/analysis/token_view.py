"""The loss by token position, by token frequency, and by a field of the document, from logged samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.analysis.intervals import Interval, delta_interval
from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS
from xent_metrics.analysis.runs import TaskRun
from xent_metrics.analysis.samples import Sample
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.analysis.token_columns import TokenChunk, TokenColumns
from xent_metrics.errors import ComparisonError
from xent_metrics.metrics import CrossEntropy
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.wrappers.grouping import Frequency, Position

__all__ = ["by_domain", "by_frequency", "by_position"]

_EDGES = (0, 1, 4, 16, 64, 256, 1024, 4096)
_MOST_DOMAINS = 40


def by_position(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy by ranges of the token's position in its document, with intervals over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    longest = max((int(chunk.sizes.max()) for chunk in _tokens(task)), default=0)
    grouping = Position([edge for edge in _EDGES if edge < longest])
    groups: np.ndarray[Any, Any] = grouping(_scores(target=torch.zeros(longest, dtype=torch.long))).numpy()

    def group(chunk: TokenChunk) -> np.ndarray[Any, Any]:
        starts = np.repeat(np.cumsum(chunk.sizes) - chunk.sizes, chunk.sizes)
        found: np.ndarray[Any, Any] = groups[np.arange(len(chunk.ids)) - starts]
        return found

    return _by_group(task, grouping.labels, group)


def by_frequency(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy by the token's number of occurrences in these documents, with intervals over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    counts = np.zeros(0, dtype=np.int64)
    for chunk in _tokens(task):
        found = np.bincount(chunk.ids, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    most = int(counts.max())
    grouping = Frequency([edge for edge in _EDGES if 0 < edge <= most], counts=torch.from_numpy(counts))
    return _by_group(task, grouping.labels, lambda chunk: grouping(_scores(target=torch.from_numpy(chunk.ids))).numpy())


def by_domain(task: TaskRun, name: str, field: str) -> tuple[list[str], list[Interval]]:
    """The metric `name` by the value of a document field, with intervals over documents.

    Raises:
        ComparisonError: the documents have no such field, or their sums were not logged.
    """
    sums = task.sums(name)
    values = [_document(sample).get(field) for sample in task.samples]
    if sums is None or any(value is None for value in values):
        fields = sorted(_document(task.samples[0])) if values else []
        raise ComparisonError(
            f"task {task.name}: not every document has the field {field!r} and logged sums; its fields: {fields}"
        )
    labels = sorted({str(value) for value in values})
    if len(labels) > _MOST_DOMAINS:
        raise ComparisonError(
            f"task {task.name}: {field!r} has {len(labels)} different values in {len(values)} documents; expected at most "
            f"{_MOST_DOMAINS}. Pass a field that many documents share"
        )
    rows = {label: [i for i, value in enumerate(values) if str(value) == label] for label in labels}
    return labels, [delta_interval(task.metrics[name], sums.at(rows[label])) for label in labels]


def _document(sample: Sample) -> Mapping[str, Any]:
    document = sample.raw.get("doc")
    return document if isinstance(document, dict) else {}


def _tokens(task: TaskRun) -> TokenColumns:
    if not task.token_columns:
        raise ComparisonError(f"task {task.name}: no tokens in the samples; {HOW_TO_LOG_TOKENS}")
    return task.token_columns


def _scores(target: Tensor) -> TokenScores:
    """Scores of tokens of which only the ids matter."""
    return TokenScores(nll=torch.zeros(target.shape), counted=torch.ones(target.shape, dtype=torch.bool), target=target)


def _by_group(
    task: TaskRun, labels: Sequence[str], group: Callable[[TokenChunk], np.ndarray[Any, Any]]
) -> tuple[list[str], list[Interval]]:
    """Cross entropy of each group over the documents that have tokens in it."""
    metric, groups = CrossEntropy(), len(labels)
    nats, tokens = (np.concatenate(parts) for parts in zip(*_cells(task, groups, group), strict=True))  # (D, groups)
    found: dict[str, Interval] = {}
    for place, label in enumerate(labels):
        filled = tokens[:, place] > 0
        if filled.any():
            sums = {"nats": nats[filled, place], "tokens": tokens[filled, place]}
            named = {name: torch.from_numpy(values) for name, values in sums.items()}
            found[label] = delta_interval(metric, SumsByDocument.named(metric, named))
    return list(found), list(found.values())


def _cells(
    task: TaskRun, groups: int, group: Callable[[TokenChunk], np.ndarray[Any, Any]]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """The nats and the number of tokens of each document in each group, ``(D, groups)``, chunk by chunk."""
    for chunk in _tokens(task):
        documents = len(chunk.places)
        cells = np.repeat(np.arange(documents), chunk.sizes) * groups + group(chunk)
        nats, tokens = (np.bincount(cells, weights, documents * groups) for weights in (chunk.nll, None))
        yield nats.reshape(documents, groups), tokens.reshape(documents, groups).astype(np.float64)
