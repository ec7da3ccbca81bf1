"""Each document's sums in an eighth of the memory of packed states, for runs of millions of documents.

A packed sum is a row of eight integers, so that any number of them adds up exactly. A document's own sums come from a log as
float64 numbers, and only their total has to be exact: it is taken chunk by chunk, with the bits of the states' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xent_metrics.sums import exact_sum
from xent_metrics.sums.layout import COUNTS
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import is_sample

__all__ = ["SumsByDocument"]

_CHUNK_SUMS = 2**16  # sums packed at once, 4 MiB


@dataclass(frozen=True)
class SumsByDocument:
    """The sums of each document in a metric's layout, and their exact total.

    Attributes:
        sums: ``(D, rows)`` float64, as `exact_sum.to_float` gives them of packed states.
        total: the merged states, ``(rows, 8)`` int64.
        samples: True for the documents that hold more than ignored rows, ``(D,)``.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> states = torch.stack([metric.exact_sums(from_loglikelihoods([-x], row_kind="token")) for x in (1.0, 2.0)])
    >>> documents = SumsByDocument.of(states)
    >>> len(documents), documents.value(metric)
    (2, 1.5)
    """

    sums: Tensor
    total: Tensor
    samples: Tensor

    @classmethod
    def of(cls, states: Tensor | SumsByDocument) -> SumsByDocument:
        """Those of packed states, int64 ``(D, rows, 8)``."""
        if isinstance(states, SumsByDocument):
            return states
        states = states.cpu()
        return cls(exact_sum.to_float(states), exact_sum.merge(states), is_sample(states))

    @classmethod
    def rounded(cls, sums: Tensor) -> SumsByDocument:
        """Those of sums that were logged, ``(D, rows)`` float64, which become the nearest packed sums in place."""
        total = torch.zeros(sums.shape[1], exact_sum.ROW, dtype=torch.int64)
        samples = torch.zeros(len(sums), dtype=torch.bool)
        size = max(1, _CHUNK_SUMS // max(1, sums.shape[1]))
        for start in range(0, len(sums), size):
            states = exact_sum.exact(sums[start : start + size])
            sums[start : start + size] = exact_sum.to_float(states)
            samples[start : start + size] = is_sample(states)
            total = exact_sum.merge(torch.stack([total, exact_sum.merge(states)]))
        return cls(sums, total, samples)

    @classmethod
    def named(cls, metric: TokenMetric, sums: Mapping[str, Tensor]) -> SumsByDocument:
        """Those of sums by name, each ``(D,)``, or ``(D, num_bins)``, in the layout of a metric."""
        columns = [sums[name].double().reshape(-1, rows) for name, rows in metric.layout.rows.items()]
        counts = columns[0].new_zeros(len(columns[0]), len(COUNTS))
        return cls.rounded(torch.cat([counts, *columns], dim=1))

    def __len__(self) -> int:
        return len(self.sums)

    def states(self) -> Tensor:
        """The packed states, int64 ``(D, rows, 8)``: eight times the memory."""
        return exact_sum.exact(self.sums)

    def at(self, places: Tensor | Sequence[int]) -> SumsByDocument:
        """The logged documents at these places, in their order."""
        places = torch.as_tensor(places, dtype=torch.long)
        return self if _is_range(places, len(self)) else SumsByDocument.rounded(self.sums[places])

    def without_empty(self, samples: Tensor | None = None) -> SumsByDocument:
        """The documents that are samples, or are so in another run: `samples` are at least those of this one."""
        samples = self.samples if samples is None else samples
        return self if bool(samples.all()) else SumsByDocument(self.sums[samples], self.total, self.samples[samples])

    def value(self, metric: TokenMetric) -> float:
        """The metric over all documents; nan without a document that is a sample."""
        return float(metric.value_of(self.total)) if bool(self.samples.any()) else float("nan")


def _is_range(places: Tensor, size: int) -> bool:
    return len(places) == size and bool((places == torch.arange(size)).all())
