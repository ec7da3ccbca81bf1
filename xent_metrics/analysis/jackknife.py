"""How much a value owes to each document: what it would be without it, and how many documents it really rests on.

The delta method judges a document by its residual from a line that the document itself has drawn towards it, the more so
the longer it is. Left out, it is judged by all others' line: for a ratio that divides the residual y_d − R x_d by the
share 1 − x_d/X of the others. And where few long documents carry the value, the error is known as well as from those
few: Student's quantile is that of Kish's effective number of documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import gradient_of

__all__ = ["degrees_of_freedom", "from_scale", "influence", "jackknife_error", "leave_one_out", "on_scale", "values_of"]

_AT_ONCE = 2**21  # float64 in a chunk of totals, 16 MiB


def on_scale(metric: TokenMetric, values: Tensor) -> Tensor:
    """Values on the scale on which the metric's sampling error is symmetric: logarithms of perplexities."""
    return values.log() if metric.interval_scale == "log" else values


def from_scale(metric: TokenMetric, value: float) -> float:
    """What `on_scale` undoes; inf beyond float64."""
    return float(torch.tensor(value, dtype=torch.float64).exp()) if metric.interval_scale == "log" else value


def values_of(metric: TokenMetric, sums: Tensor) -> Tensor:
    """The metric's value for each total, ``(…, rows)`` float64 to ``(…)``: all at once where its operations allow."""
    rows = sums.reshape(-1, sums.shape[-1])

    def value(total: Tensor) -> Tensor:
        return metric.value(metric.unpack(total))

    if not len(rows):
        return rows.new_zeros(sums.shape[:-1])
    try:
        at_once = torch.vmap(value, chunk_size=max(1, _AT_ONCE // rows.shape[-1]))
        return at_once(rows).reshape(sums.shape[:-1])
    except RuntimeError:  # a plugin's value that looks at a number, which has no meaning for many of them
        return torch.stack([value(total) for total in rows]).reshape(sums.shape[:-1])


def leave_one_out(metric: TokenMetric, sums: Tensor) -> Tensor:
    """The metric, on its scale, over all documents but one, for each: ``(D, rows)`` float64 to ``(D,)``."""
    return on_scale(metric, values_of(metric, sums.sum(dim=0) - sums))


def jackknife_error(estimates: Tensor) -> float:
    """√((D − 1)/D · Σ_d (θ_d − θ̄)²), with θ_d the estimate without document d; nan for fewer than two.

    Reference: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.

    >>> jackknife_error(torch.tensor([2.5, 2.0, 1.5]))      # means of 1, 2, 3 without each of them: 1/√3
    0.57735...
    """
    documents = len(estimates)
    if documents < 2:
        return float("nan")
    return float(((estimates - estimates.mean()).square().sum() * (documents - 1) / documents).sqrt())


def influence(metric: TokenMetric, sums: Tensor) -> Tensor:
    """How much of the value's terms, on its scale, is each document's, Σ_rows |∂value/∂S · s_d|: ``(D, rows)`` to ``(D,)``."""
    gradient = gradient_of(lambda total: on_scale(metric, metric.value(metric.unpack(total))), sums.sum(dim=0))
    return (sums * gradient).abs().sum(dim=-1)


def degrees_of_freedom(influences: Tensor) -> float:
    """(Σ w)² / Σ w² − 1: Kish's effective number of documents of these weights, less one; D − 1 where all weigh the same.

    Reference: Kish (1965), Survey Sampling, section 11.7.

    >>> degrees_of_freedom(torch.tensor([1.0, 1.0, 1.0, 1.0])), degrees_of_freedom(torch.tensor([100.0, 1.0, 1.0, 1.0]))
    (3.0, 0.0605...)
    """
    squares = float(influences.square().sum())
    return float(influences.sum()) ** 2 / squares - 1 if squares > 0 else float(len(influences) - 1)


def resample_totals(counts: np.ndarray[Any, Any], sums: Tensor) -> Tensor:
    """Totals ``(R, rows)`` of documents taken `counts` ``(R, D)`` times each."""
    return torch.from_numpy(counts.astype(np.float64)) @ sums
