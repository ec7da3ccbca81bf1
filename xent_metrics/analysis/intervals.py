"""Confidence intervals of any metric over documents: the delta method's, and the cluster bootstrap's.

Documents are the independent samples: tokens of one document depend on each other and stay together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import exact_sum
from ..errors import MissingExtraError
from ..metric import TokenMetric
from .standard_error import standard_error

__all__ = ["Interval", "bootstrap", "delta_interval", "scipy_stats", "values_of"]


@dataclass(frozen=True)
class Interval:
    """A value with its standard error and confidence interval, in the metric's unit."""

    value: float
    standard_error: float
    low: float
    high: float
    confidence_level: float = 0.95


def delta_interval(metric: TokenMetric, states: Tensor, *, confidence_level: float = 0.95) -> Interval:
    """The metric over all documents ± t_{D−1} times the delta method's standard error; nan for fewer than two.

    Args:
        metric: gives the value; its own state is not used.
        states: each document's packed sums, int64 ``(D, rows, 8)``, from ``metric.exact_sums(scores)``.

    Reference: Cochran (1977), Sampling Techniques, section 6.3.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> states = [metric.exact_sums(from_loglikelihoods([-x], unit="token")) for x in (1.0, 2.0, 3.0)]
    >>> interval = delta_interval(metric, torch.stack(states))
    >>> round(interval.low, 3), round(interval.high, 3)       # 2 ± 4.303/√3
    (-0.484, 4.484)
    """
    value = _value(metric, states)
    error = standard_error(metric, states)
    half = float(scipy_stats().t.ppf(0.5 + confidence_level / 2, max(1, len(states) - 1))) * error
    return Interval(value, error, value - half, value + half, confidence_level)


def bootstrap(
    metric: TokenMetric,
    states: Tensor,
    *,
    confidence_level: float = 0.95,
    num_resamples: int = 2000,
    method: str = "BCa",
    seed: int = 0,
) -> Interval:
    """The metric over all documents, with the cluster bootstrap's standard error and interval; nan for fewer than two.

    Args:
        metric: gives the value; its own state is not used.
        states: each document's packed sums, int64 ``(D, rows, 8)``, from ``metric.exact_sums(scores)``.
        method: "percentile", "basic" or "BCa", as in `scipy.stats.bootstrap`, which does the resampling.

    Reference: Efron and Tibshirani (1993), An Introduction to the Bootstrap; scipy.stats.bootstrap.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> states = [metric.exact_sums(from_loglikelihoods([-x], unit="token")) for x in (1.0, 2.0, 3.0, 4.0)]
    >>> interval = bootstrap(metric, torch.stack(states), method="percentile")
    >>> interval.low < interval.value < interval.high
    True
    """
    stats = scipy_stats()
    value = _value(metric, states)
    if len(states) < 2:
        nan = float("nan")
        return Interval(value, nan, nan, nan, confidence_level)
    sums = exact_sum.to_float(states.cpu())  # (D, rows)

    def statistic(documents: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        return values_of(metric, sums[torch.tensor(documents)].sum(dim=axis % documents.ndim))

    result = stats.bootstrap(
        (np.arange(len(sums)),),
        statistic,
        n_resamples=num_resamples,
        batch=_batch(sums),
        vectorized=True,
        confidence_level=confidence_level,
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = (float(bound) for bound in result.confidence_interval)
    return Interval(value, float(result.standard_error), low, high, confidence_level)


def values_of(metric: TokenMetric, sums: Tensor) -> np.ndarray[Any, Any]:
    """The metric's value for each total, ``(…, rows)`` float64 to ``(…)``."""
    rows = sums.reshape(-1, sums.shape[-1])
    values = [metric.value(metric.unpack(total)) for total in rows]
    result: np.ndarray[Any, Any] = torch.stack(values).reshape(sums.shape[:-1]).numpy()
    return result


def _value(metric: TokenMetric, states: Tensor) -> float:
    return float(metric.value_of(exact_sum.merge(states.cpu()))) if len(states) else float("nan")


def _batch(sums: Tensor) -> int:
    """Resamples at a time, for some 64 MiB of gathered sums."""
    return max(1, 2**23 // sums.numel())


def scipy_stats() -> Any:
    """`scipy.stats`, or the error that says how to get it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("this analysis needs scipy: pip install 'xent-metrics[analysis]'") from error
    return stats
