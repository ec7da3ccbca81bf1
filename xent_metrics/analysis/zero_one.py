"""Metrics that are right or wrong on each document, such as lm-eval's `acc`: Wilson's, Newcombe's and McNemar's methods.

The mean of n zeros and ones has known distributions, so nothing has to be estimated from a spread: an interval for 20 right of
20, of which the jackknife would say ± 0, and a p value without resampling.

References: Wilson (1927), Probable Inference; Newcombe (1998), Improved Confidence Intervals for the Difference Between Binomial
Proportions Based on Paired Data, method 10; McNemar (1947), in the exact form.
"""

from __future__ import annotations

import math

from torch import Tensor

from xent_metrics.analysis.scipy_stats import scipy_stats
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["mcnemar_p_value", "newcombe_interval", "outcomes", "wilson_interval"]


def outcomes(metric: TokenMetric, sums: Tensor) -> Tensor | None:
    """1 for each document that the metric calls right and 0 for each wrong one, ``(D,)``; None for any other metric.

    Args:
        metric: the metric; it must be the mean of one 0 or 1 of each document.
        sums: each document's sums, float64 ``(D, rows)``.
    """
    if not isinstance(metric, RatioMetric) or type(metric).value is not RatioMetric.value or not len(sums):
        return None
    of_documents = metric.layout.unpack(sums.T)
    right, ones = (of_documents[name] for name in metric.ratio_names())
    return right if bool((ones == 1).all() and ((right == 0) | (right == 1)).all()) else None


def wilson_interval(right: Tensor, confidence_level: float) -> tuple[float, float]:
    """Wilson's interval of the share of right documents, by `scipy.stats`; `right` is 0 or 1 of each, ``(D,)``.

    >>> import torch
    >>> low, high = wilson_interval(torch.ones(20), 0.95)
    >>> round(low, 3), high
    (0.839, 1.0)
    """
    found = scipy_stats().binomtest(int(right.sum()), len(right)).proportion_ci(confidence_level, method="wilson")
    return float(found.low), float(found.high)


def newcombe_interval(a: Tensor, b: Tensor, confidence_level: float) -> tuple[float, float]:
    """An interval of the share of right documents in B minus that in A, from Wilson's intervals of both; 0 or 1, ``(D,)``.

    >>> import torch
    >>> low, high = newcombe_interval(torch.tensor([1.0, 0, 0, 0] * 10), torch.tensor([1.0, 1, 0, 0] * 10), 0.95)
    >>> round(low, 3), round(high, 3)
    (0.103, 0.38)
    """
    share_a, share_b = float(a.mean()), float(b.mean())
    (low_a, high_a), (low_b, high_b) = (wilson_interval(each, confidence_level) for each in (a, b))
    phi = _correlation(a, b)

    def side(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))

    shift = share_b - share_a
    return shift - side(share_b - low_b, high_a - share_a), shift + side(high_b - share_b, share_a - low_a)


def mcnemar_p_value(a: Tensor, b: Tensor) -> float:
    """McNemar's exact test: the permutation test of zeros and ones, with all swaps counted at once; ``(D,)`` each.

    Only documents on which A and B differ count. Each is as likely to be B's as A's if the runs are exchangeable.

    >>> import torch
    >>> mcnemar_p_value(torch.tensor([0.0, 0, 0, 0, 1]), torch.tensor([1.0, 1, 1, 1, 1]))      # 2/2⁴
    0.125
    """
    only_b, differ = int((b > a).sum()), int((a != b).sum())
    return float(scipy_stats().binomtest(only_b, differ).pvalue) if differ else 1.0


def _correlation(a: Tensor, b: Tensor) -> float:
    """The correlation φ of two columns of zeros and ones; a positive one is corrected for continuity, as Newcombe does."""
    both, only_a, only_b = (float(each.sum()) for each in (a * b, a * (1 - b), (1 - a) * b))
    neither = len(a) - both - only_a - only_b
    scale = math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    product = both * neither - only_a * only_b
    corrected = max(product - len(a) / 2, 0.0) if product > 0 else product
    return corrected / scale if scale else 0.0
