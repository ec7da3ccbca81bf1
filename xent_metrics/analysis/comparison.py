"""Is B better than A? Two runs on the same documents, compared document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import exact_sum
from ..errors import ComparisonError
from ..metric import TokenMetric
from .intervals import scipy_stats, values_of
from .standard_error import gradient_of

__all__ = ["Comparison", "compare", "same_documents"]


@dataclass(frozen=True)
class Comparison:
    """The difference B − A of a metric over the same documents, in the metric's unit.

    `p_value` is of the hypothesis that A and B are exchangeable document by document. `documents_needed` is how many
    such documents would show a difference of this size with 80 % power at the 5 % level.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    documents: int
    documents_needed: float
    better: str | None
    confidence_level: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not finite is None."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def compare(
    metric: TokenMetric,
    states_a: Tensor,
    states_b: Tensor,
    *,
    confidence_level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare two runs on the same documents, in the same order.

    With g the gradient of the value at each run's totals, r_d = g_B · b_d − g_A · a_d estimates document d's share of the
    difference, and SE² = D/(D − 1) · Σ_d (r_d − r̄)². The interval is ± t_{D−1} · SE. The p value is that of a permutation
    test which swaps A and B in each document by the toss of a coin (exact where 2^D is at most `num_resamples`).

    Args:
        metric: gives the value; its own state is not used.
        states_a, states_b: each document's packed sums, int64 ``(D, rows, 8)``.

    Raises:
        ComparisonError: unlike numbers of documents, or fewer than two.

    Reference: Cochran (1977), section 6.3; scipy.stats.permutation_test; Miller (2024), arXiv:2411.00640, on pairing.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> def run(*nll):
    ...     return torch.stack([metric.exact_sums(from_loglikelihoods([-x], unit="token")) for x in nll])
    >>> result = compare(metric, run(1.0, 2.0, 3.0, 4.0, 5.0), run(0.9, 1.8, 2.8, 3.9, 4.9))
    >>> round(result.difference, 4), result.p_value        # all five of one sign: 2/2^5
    (-0.14, 0.0625)
    """
    if len(states_a) != len(states_b) or len(states_a) < 2:
        raise ComparisonError(
            f"a paired comparison needs the same two or more documents in both runs; got {len(states_a)} and {len(states_b)}"
        )
    stats = scipy_stats()
    a, b = exact_sum.to_float(states_a.cpu()), exact_sum.to_float(states_b.cpu())
    documents = len(a)
    value_a, value_b = (float(metric.value_of(exact_sum.merge(s.cpu()))) for s in (states_a, states_b))
    share = _shares(metric, b) - _shares(metric, a)
    error = float((share.var(unbiased=True) * documents).sqrt())
    difference = value_b - value_a
    half = float(stats.t.ppf(0.5 + confidence_level / 2, documents - 1)) * error
    low, high = difference - half, difference + half
    return Comparison(
        metric=metric.name,
        value_a=value_a,
        value_b=value_b,
        difference=difference,
        standard_error=error,
        low=low,
        high=high,
        p_value=_permutation_p(metric, a, b, num_resamples, seed),
        documents=documents,
        documents_needed=_documents_needed(difference, error, documents),
        better=_better(metric, low, high),
        confidence_level=confidence_level,
    )


def _shares(metric: TokenMetric, sums: Tensor) -> Tensor:
    """g · s_d for each document, ``(D,)``."""
    return sums @ gradient_of(lambda total: metric.value(metric.unpack(total)), sums.sum(dim=0))


def _permutation_p(metric: TokenMetric, a: Tensor, b: Tensor, num_resamples: int, seed: int) -> float:
    both = torch.cat([a, b])

    def difference(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        axis = axis % first.ndim
        totals = [both[torch.tensor(rows)].sum(dim=axis) for rows in (first, second)]
        result: np.ndarray[Any, Any] = values_of(metric, totals[1]) - values_of(metric, totals[0])
        return result

    result = scipy_stats().permutation_test(
        (np.arange(len(a)), np.arange(len(a)) + len(a)),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, 2**22 // both.numel()),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _documents_needed(
    difference: float, error: float, documents: int, power: float = 0.8, level: float = 0.05
) -> float:
    norm = scipy_stats().norm
    z = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    if difference == 0 or not math.isfinite(difference) or not math.isfinite(error):
        return math.inf
    return float(max(2, math.ceil(documents * (z * error / difference) ** 2)))


def _better(metric: TokenMetric, low: float, high: float) -> str | None:
    """ "A" or "B" where the interval leaves zero out and the metric says which way is better."""
    if metric.higher_is_better is None or not (low > 0 or high < 0):
        return None
    return "B" if (low > 0) == metric.higher_is_better else "A"


def same_documents(a: Sequence[str], b: Sequence[str]) -> None:
    """Raise `ComparisonError` unless two runs saw the same documents (by hash), whatever their order.

    >>> same_documents(["x", "y"], ["y", "z"])
    Traceback (most recent call last):
        ...
    xent_metrics.errors.ComparisonError: the runs saw other documents: 1 in both, 1 only in A, 1 only in B...
    """
    first, second = set(a), set(b)
    if first != second or len(a) != len(b):
        raise ComparisonError(
            f"the runs saw other documents: {len(first & second)} in both, {len(first - second)} only in A, "
            f"{len(second - first)} only in B. Evaluate both on the same task, version, split and --limit, or compare on those "
            "that both have (--shared-documents)"
        )
