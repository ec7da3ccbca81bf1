"""The loss of each document of a task, by which documents are ordered, from columns of numbers alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xent_metrics.analysis.runs import TaskRun
from xent_metrics.analysis.samples import Sample, Samples

__all__ = ["document_loss", "document_losses"]

_NATS = "nats"
_Array = np.ndarray[Any, Any]


def document_losses(task: TaskRun) -> tuple[_Array, _Array]:
    """The loss of each document as `document_loss` has it, and its number of logged tokens, both ``(D,)``.

    Documents themselves are read only if neither their tokens nor sums of nats are in columns.
    """
    losses, sizes = np.full(len(task.samples), math.nan), np.zeros(len(task.samples), dtype=np.int64)
    for chunk in task.token_columns:
        sizes[chunk.places] = chunk.sizes
        ends = np.cumsum(chunk.sizes)
        for place, size, end in zip(chunk.places, chunk.sizes.tolist(), ends.tolist(), strict=True):
            losses[place] = math.fsum(chunk.nll[end - size : end].tolist()) / size
    if not sizes.all():
        without = np.flatnonzero(sizes == 0)
        summed = _summed_nats(task)
        if summed is None:
            summed = np.full(len(task.samples), math.nan)
            summed[without] = [document_loss(task.samples[place]) for place in without.tolist()]
        losses[without] = summed[without]
    return losses, sizes


def _summed_nats(task: TaskRun) -> _Array | None:
    """The first sum of nats that all documents have."""
    if not isinstance(task.samples, Samples):
        return None
    for key, sums in task.samples.sums.items():
        if sums is None or key not in task.metrics:
            continue
        for name, rows in task.metrics[key].layout.by_name(sums.sums.mT).items():
            if name.startswith(_NATS) and len(rows) == 1:
                return rows[0].numpy()
    return None


def document_loss(sample: Sample) -> float:
    """The mean nll in nats per token; without tokens the logged sum of nats; otherwise nan."""
    if sample.tokens:
        return sample.tokens.mean_nll
    for sums in sample.all_sums():
        if nats := next((v for n, v in sums.items() if n.startswith(_NATS) and isinstance(v, float)), None):
            return nats
    return math.nan
