"""Each document's leave-one-out influence, and the number of documents a value effectively rests on.

The plain delta method measures a document by its residual from a fit that the document itself has influenced, the more
so the longer it is. The jackknife measures it against the fit of all other documents: for a ratio R = Y/X this divides
the residual y_d − R x_d by 1 − x_d/X, the share of the others.

When a few long documents dominate the value, its error is estimated from little more than those few. Student's
quantile therefore uses Kish's effective number of documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import by_chunk, gradient_of

__all__ = [
    "degrees_of_freedom",
    "from_scale",
    "influence",
    "jackknife_error",
    "leave_one_out",
    "on_scale",
    "resample_totals",
    "values_of",
]

_CHUNK_ELEMENTS = 2**21  # float64 totals evaluated at once, 16 MiB


def on_scale(metric: TokenMetric, values: Tensor) -> Tensor:
    """Map values to the scale on which the sampling error is symmetric: the logarithm for perplexities."""
    return values.log() if metric.interval_scale == "log" else values


def from_scale(metric: TokenMetric, value: float) -> float:
    """Invert `on_scale`; inf beyond the range of float64."""
    return float(torch.tensor(value, dtype=torch.float64).exp()) if metric.interval_scale == "log" else value


def values_of(metric: TokenMetric, sums: Tensor) -> Tensor:
    """The metric's value for each total, ``(…, rows)`` float64 to ``(…)``, vectorised where the metric allows it."""
    rows = sums.reshape(-1, sums.shape[-1])

    def value(total: Tensor) -> Tensor:
        return metric.value(metric.unpack(total))

    if not len(rows):
        return rows.new_zeros(sums.shape[:-1])
    try:
        vectorised = torch.vmap(value, chunk_size=max(1, _CHUNK_ELEMENTS // rows.shape[-1]))
        return vectorised(rows).reshape(sums.shape[:-1])
    except RuntimeError:  # a plugin's value may branch on a number, which vmap doesn't support
        return torch.stack([value(total) for total in rows]).reshape(sums.shape[:-1])


def leave_one_out(metric: TokenMetric, sums: Tensor) -> Tensor:
    """The metric without each document in turn, on its scale: ``(D, rows)`` float64 to ``(D,)``."""
    total = sums.sum(dim=0)
    return by_chunk(lambda chunk: on_scale(metric, values_of(metric, total - chunk)), sums)


def jackknife_error(estimates: Tensor) -> float:
    """√((D − 1)/D · Σ_d (θ_d − θ̄)²), where θ_d is the estimate without document d; nan for fewer than two.

    Reference: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.

    >>> jackknife_error(torch.tensor([2.5, 2.0, 1.5]))      # means of 1, 2, 3 without each of them: 1/√3
    0.57735...
    """
    documents = len(estimates)
    if documents < 2:
        return float("nan")
    return float(((estimates - estimates.mean()).square().sum() * (documents - 1) / documents).sqrt())


def influence(metric: TokenMetric, sums: Tensor) -> Tensor:
    """Each document's influence on the value, Σ_rows |∂value/∂S · s_d| on the metric's scale: ``(D, rows)`` to ``(D,)``."""
    gradient = gradient_of(lambda total: on_scale(metric, metric.value(metric.unpack(total))), sums.sum(dim=0))
    return by_chunk(lambda chunk: (chunk * gradient).abs().sum(dim=-1), sums)


def degrees_of_freedom(influences: Tensor) -> float:
    """(Σ w)² / Σ w² − 1, Kish's effective number of documents minus one; D − 1 if all weights are equal.

    Reference: Kish (1965), Survey Sampling, section 11.7.

    >>> degrees_of_freedom(torch.tensor([1.0, 1.0, 1.0, 1.0])), degrees_of_freedom(torch.tensor([100.0, 1.0, 1.0, 1.0]))
    (3.0, 0.0605...)
    """
    squares = float(influences.square().sum())
    return float(influences.sum()) ** 2 / squares - 1 if squares > 0 else float(len(influences) - 1)


def resample_totals(counts: np.ndarray[Any, Any], sums: Tensor) -> Tensor:
    """Total sums ``(R, rows)`` of R resamples that contain each document `counts` ``(R, D)`` times."""
    return torch.from_numpy(counts.astype(np.float64)) @ sums
