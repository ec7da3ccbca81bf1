"""Each document's sums for a metric, collected from what lm-eval logged: those we logged, or those that follow from its own."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from xent_metrics.analysis.run_metrics import LoggedMean
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.sums.layout import COUNTS
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["SUMS_SUFFIXES", "SumsColumn", "sums_of"]

#: What the name of a metric's sums ends with; the second one if `lm_eval.evaluate` was called by itself.
SUMS_SUFFIXES = ("_sums", "_stderr")


class SumsColumn:
    """The sums of one metric, document by document.

    Args:
        metric: what lays out the sums.
        name: of the metric in the log.

    Attributes:
        complete: False once a document had no sums, or others than numbers in the metric's layout.
    """

    def __init__(self, metric: TokenMetric, name: str) -> None:
        self.metric, self.name, self.complete = metric, name, True
        self._rows = metric.layout.size
        self._bins = {sum_name: metric.layout.bins[sum_name] for sum_name in metric.layout.rows}
        self._values = array("d")

    def add(self, raw: Mapping[str, Any]) -> None:
        """Add a document, given as its logged JSON object."""
        if not self.complete:
            return
        row = self.row(raw)
        if row is None:
            self.complete, self._values = False, array("d")
        else:
            self._values.extend(row)

    def row(self, raw: Mapping[str, Any]) -> list[float] | None:
        """A document's sums in the metric's layout, with counts of 0; None if there are none."""
        found = self._found(raw)
        if found is None:
            return None
        row = [0.0] * len(COUNTS)
        for sum_name, bins in self._bins.items():
            value = found.get(sum_name)
            values = [value] if bins is None else value
            if not isinstance(values, list) or len(values) != (bins or 1):
                return None
            if not all(isinstance(each, int | float) for each in values):
                return None
            row += values
        return row

    def _found(self, raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
        value = raw.get(self.name)
        if isinstance(self.metric, LoggedMean):
            return {"values": float(value), "documents": 1.0} if isinstance(value, int | float) else None
        if isinstance(self.metric, RatioMetric) and isinstance(value, list) and len(value) == 2:
            total, length = value
            if isinstance(total, int | float):
                return dict(zip(self.metric.ratio_names(), (-total, length), strict=True))
        logged = (raw.get(f"{self.name}{suffix}") for suffix in SUMS_SUFFIXES)
        return next((found for found in logged if isinstance(found, dict)), None)

    def taken(self, kept: np.ndarray[Any, Any] | None = None) -> SumsByDocument | None:
        """The sums of the documents, or of those that are kept, by a mask; None unless all documents have them."""
        if not self.complete or not len(self._values):
            return None
        values = np.frombuffer(self._values, dtype=np.float64).reshape(-1, self._rows)
        return SumsByDocument.rounded(torch.from_numpy(values if kept is None or kept.all() else values[kept]))


def sums_of(documents: Iterable[Mapping[str, Any]], name: str, metric: TokenMetric) -> SumsByDocument | None:
    """The sums of documents, given as their logged JSON objects; None unless all documents have them."""
    column = SumsColumn(metric, name)
    for raw in documents:
        column.add(raw)
    return column.taken()
