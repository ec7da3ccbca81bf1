"""A metric by groups: the key `by` of an entry of a `metric_list`.

    by: {field: subject}              documents by a field or a template
    by: position                      tokens by their position in the text; {position: [0, 64, 256]} gives the edges
    by: {frequency: counts.json}      tokens by how often their ids occur; a list with one count per id

Beside ``<name>``, which is over all rows (micro), the results hold ``<name>/<label>`` for every group and ``<name>/macro``, the
mean of the groups' values, each with its standard error over documents.

Who syncs: lm-eval, as for every value. Every document emits all names, since lm-eval gathers them by rank 0's names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MetricOptionError, XentMetricsError
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue, total_standard_error, total_value
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.grouped import Grouped
from xent_metrics.wrappers.grouping import Frequency, Grouping, Position
from xent_metrics.wrappers.standard_error import is_sample, residuals, standard_error

__all__ = ["By", "DocumentGroups", "MetricGroups", "macro_standard_error", "macro_value", "parse_by"]

_POSITIONS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384)
_FREQUENCIES = (0, 1, 10, 100, 1000, 10_000, 100_000)


class By(NamedTuple):
    """How a metric is grouped: documents by a field or a template, or tokens by a grouping."""

    field: str | None = None
    grouping: Grouping | None = None


def parse_by(given: Any, where: str) -> By:
    """Read the `by` of an entry.

    >>> parse_by({"position": [0, 4]}, "task t").grouping.labels
    ('0–3', '4+')

    Raises:
        MetricOptionError: it is none of the three kinds, or the table of frequencies can't be read.
    """
    kind, value = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, None)
    try:
        if kind == "field" and isinstance(value, str):
            return By(field=value)
        if kind == "position":
            return By(grouping=Position(_POSITIONS if value is None else value))
        if kind == "frequency" and isinstance(value, str):
            return By(grouping=Frequency(_FREQUENCIES, json.loads(Path(value).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, XentMetricsError) as error:
        raise MetricOptionError(f"{where}: by {kind}: {error}") from error
    raise MetricOptionError(
        f"{where}: by is position, {{position: [0, 64, 256]}}, {{field: name}} or {{frequency: counts.json}}; got {given!r}"
    )


class DocumentGroups(DocumentValue):
    """A document's value with its sums by group, those of its groups alone. Serialised as a plain float."""

    parts: dict[int, Tensor]

    @classmethod
    def by(cls, value: DocumentValue, parts: dict[int, Tensor]) -> DocumentGroups:
        """The document's value with its packed sums by the group's number."""
        self = cls(float(value), value.sums)
        self.parts = parts
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return DocumentGroups.by, (DocumentValue(float(self), self.sums), self.parts)


class MetricGroups:
    """The groups of one metric of a task.

    Args:
        name: the metric's name in the results.
        metric: the metric.
        by: how it is grouped.
        labels: the groups' names, if they are a field's values.
    """

    def __init__(self, name: str, metric: TokenMetric, by: By, labels: Sequence[str] = ()) -> None:
        self.metric, self.by = metric, by
        self.labels = by.grouping.labels if by.grouping is not None else tuple(labels)
        self.names = [f"{name}/{label.replace(',', ';')}" for label in self.labels]  # lm-eval ends names with a comma
        self.macro = f"{name}/macro"
        if len({*self.names, self.macro}) <= len(self.names):
            raise InvalidInputError(
                f"{name}: its groups need different names, none of them macro; got {list(self.labels)}"
            )
        self._grouped = None if by.grouping is None else Grouped(metric, by=by.grouping)
        self._empty = DocumentValue.placeholder(metric)

    def aggregations(self, meaning: str) -> dict[str, Callable[..., float]]:
        """lm-eval's aggregations by name."""
        values: dict[str, Callable[..., float]] = {
            name: partial(total_value, self.metric, meaning=f"{meaning} by group") for name in self.names
        }
        errors = {f"{name}_stderr": partial(total_standard_error, self.metric) for name in self.names}
        macro = {
            self.macro: partial(macro_value, self.metric),
            f"{self.macro}_stderr": partial(macro_standard_error, self.metric),
        }
        return values | errors | macro

    def placeholder(self) -> DocumentGroups:
        """The value of no document."""
        return DocumentGroups.by(self._empty, {})

    def of(self, value: DocumentValue, scores: Sequence[TokenScores], label: str) -> DocumentGroups:
        """A document's value with its sums by group: those of its label, or of each group that its tokens are in."""
        if self._grouped is None:
            states = {self.labels.index(label): value.sums}
        else:
            merged = exact_sum.merge(torch.stack([self._grouped.exact_sums(each).cpu() for each in scores]))
            states = dict(enumerate(self._grouped.group_states(merged).values()))
        return DocumentGroups.by(value, {k: sums for k, sums in states.items() if bool(is_sample(sums[None]))})

    def emitted(self, document: DocumentGroups) -> dict[str, Any]:
        """A document's values by name, each followed by its sums; those of no row where it isn't in a group."""
        found: dict[str, Any] = {}
        for group, name in enumerate(self.names):
            sums = document.parts.get(group)
            each = self._empty if sums is None else DocumentValue(float(self.metric.value_of(sums)), sums)
            found |= {name: each, f"{name}_stderr": DocumentSums.of(self.metric, each.sums)}
        return found | {self.macro: document, f"{self.macro}_stderr": document}


def macro_value(metric: TokenMetric, documents: Sequence[DocumentGroups]) -> float:
    """The mean of the values of the groups that have rows; nan if none has."""
    groups = _by_group(documents)
    values = [float(metric.value_of(exact_sum.merge(states))) for states in groups.values()]
    return math.fsum(values) / len(values) if values else math.nan


def macro_standard_error(metric: TokenMetric, documents: Sequence[DocumentGroups]) -> float:
    """The standard error of the mean of the groups' values if documents are drawn independently; nan if a group has none.

    By the delta method over documents, as in `StandardError`. A document's tokens may be in several groups, whose errors
    are then not independent: its shares of them add up. Where every document is in one group, this is √(Σ e²)/G for the errors
    e of the G groups.
    """
    groups = _by_group(documents)
    if not groups or any(math.isnan(standard_error(metric, states)) for states in groups.values()):
        return math.nan
    shares = {group: iter(_shares(metric, states)) for group, states in groups.items()}
    by_document = [math.fsum(next(shares[group]) for group in document.parts) for document in documents]
    return math.hypot(*by_document) / len(groups)


def _shares(metric: TokenMetric, states: Tensor) -> list[float]:
    """Each document's share of the error of a group's value: their squares add up to its square."""
    size = len(states)
    return [residual * math.sqrt(size / (size - 1)) for residual in residuals(metric, states).tolist()]


def _by_group(documents: Sequence[DocumentGroups]) -> dict[int, Tensor]:
    """The packed sums of each group's documents, ``(D, rows, 8)``, by the group's number."""
    found: dict[int, list[Tensor]] = {}
    for document in documents:
        for group, sums in document.parts.items():
            found.setdefault(group, []).append(sums)
    return {group: torch.stack(found[group]) for group in sorted(found)}
