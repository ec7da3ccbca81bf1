"""The values that lm-eval gathers: one document's value with its exact sums, and the totals over all documents.

Who syncs: lm-eval does. It gathers every document's value to rank 0 and calls the two `total_…` functions there alone.
They start no collective. They add packed integers, so the number of processes doesn't change a bit. A task's total keeps
its documents' sums, from which a group's value follows (groups.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.errors import CapacityError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import standard_error

__all__ = ["DocumentSums", "DocumentValue", "TotalValue", "is_placeholder", "total_standard_error", "total_value"]


class DocumentValue(float):
    """A metric's value of one document, with its packed exact sums, int64 ``(rows, 8)``. Serialised as a plain float."""

    sums: Tensor

    def __new__(cls, value: float, sums: Tensor) -> DocumentValue:
        self = super().__new__(cls, value)
        self.sums = sums
        return self

    @classmethod
    def of(cls, metric: TokenMetric, *scores: TokenScores) -> DocumentValue:
        """The metric of one document's scores, or of all its texts' scores. The metric's own state doesn't change."""
        sums = exact_sum.merge(torch.stack([metric.exact_sums(each).cpu() for each in scores]))
        return cls(float(metric.value_of(sums)), sums)

    @classmethod
    def placeholder(cls, metric: TokenMetric | None = None) -> DocumentValue:
        """The value of no document: nan, with sums of zero. Without a metric it holds no sum at all."""
        sums = torch.zeros(0, exact_sum.ROW, dtype=torch.int64) if metric is None else torch.zeros_like(metric.state)
        return cls(math.nan, sums)

    def __reduce__(self) -> tuple[Any, ...]:
        return _value_of, (float(self), _as_bytes(self.sums))


class DocumentSums(dict[str, Any]):
    """The same sums under ``<name>_stderr``, for the standard error. Serialised as float64, 53 bits, by the name of the sum.

    Logged samples keep them, as ``<name>_sums`` (names_in_results.py), so that two runs can be compared later.
    """

    sums: Tensor

    def __new__(cls, named: dict[str, Any], sums: Tensor) -> DocumentSums:
        self = super().__new__(cls)
        self.sums = sums
        return self

    def __init__(self, named: dict[str, Any], sums: Tensor) -> None:
        super().__init__(named)

    @classmethod
    def of(cls, metric: TokenMetric, sums: Tensor) -> DocumentSums:
        """The packed sums with their names."""
        named = metric.unpack(exact_sum.to_float(sums))
        return cls({name: value.tolist() for name, value in named.items()}, sums)

    def __reduce__(self) -> tuple[Any, ...]:
        return _sums_of, (dict(self), _as_bytes(self.sums))


def _as_bytes(sums: Tensor) -> bytes:
    """Packed sums without the 300 bytes that a pickled tensor has beside its values: lm-eval gathers one for each document."""
    return sums.numpy().astype("<i8", copy=False).tobytes()


def _from_bytes(sums: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(sums, "<i8").astype(np.int64).reshape(-1, exact_sum.ROW))


def _value_of(value: float, sums: bytes) -> DocumentValue:
    return DocumentValue(value, _from_bytes(sums))


def _sums_of(named: dict[str, Any], sums: bytes) -> DocumentSums:
    return DocumentSums(named, _from_bytes(sums))


def is_placeholder(value: Any) -> bool:
    """True for a `DocumentValue` or `DocumentSums` that holds the sums of no row."""
    return isinstance(value, DocumentValue | DocumentSums) and not bool(value.sums.any())


class TotalValue(float):
    """A metric's value over documents, with their packed sums, int64 ``(D, rows, 8)``. Pickled as the plain float.

    Attributes:
        metric: the metric.
        meaning: what was measured, in words: equal for values whose documents may be added up.
        states: each document's sums.
    """

    metric: TokenMetric
    meaning: str
    states: Tensor

    @classmethod
    def of(cls, metric: TokenMetric, meaning: str, states: Tensor) -> TotalValue:
        """The metric over documents with these sums."""
        total = exact_sum.merge(states)
        if bool(exact_sum.overflowed(total)):
            raise CapacityError(f"{metric.name}: a sum left ±2^78, the range in which it is exact")
        self = cls(float(metric.value_of(total)))
        self.metric, self.meaning, self.states = metric, meaning, states
        return self

    def filled_metric(self) -> TokenMetric:
        """A copy of the metric that holds these sums as those of all processes: for its plot, which then syncs nothing."""
        metric = copy.deepcopy(self.metric)
        metric.hold(exact_sum.merge(self.states))
        return metric

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


def total_value(metric: TokenMetric, documents: Sequence[DocumentValue], meaning: str = "") -> float:
    """The metric over all documents, or nan if there are none: lm-eval's aggregation of ``<name>``."""
    if not documents:
        return math.nan
    return TotalValue.of(metric, meaning, torch.stack([document.sums for document in documents]))


def total_standard_error(metric: TokenMetric, documents: Sequence[DocumentSums]) -> float:
    """The standard error over documents, or nan for fewer than two: lm-eval's aggregation of ``<name>_stderr``."""
    if not documents:
        return math.nan
    return standard_error(metric, torch.stack([document.sums for document in documents]))
