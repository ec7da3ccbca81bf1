"""Is B better than A? Two runs on the same documents, compared document by document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.analysis.intervals import half_width, scipy_stats
from xent_metrics.analysis.jackknife import (
    influence,
    jackknife_error,
    leave_one_out,
    on_scale,
    resample_totals,
    values_of,
)
from xent_metrics.errors import ComparisonError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import is_sample

__all__ = ["Comparison", "compare", "same_documents"]


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two runs over the same documents: B − A, in the metric's unit.

    Of perplexities it is `relative`, B/A − 1, with standard error and interval: how much more of one model's perplexity is
    the other's is known far better than either of them, and B − A no better than they are. `p_value` is of the hypothesis
    that A and B are exchangeable document by document. `better` names a run where the metric says which way is better, the
    interval leaves 0 out and the p value is at most 1 − `confidence_level`. `documents_needed` is how many such documents
    would show a difference of this size with 80 % power at the 5 % level.
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
    relative: bool = False

    def shown(self, number: float, digits: int = 3) -> str:
        """A difference as people read it, with its sign; a relative one in percent."""
        return f"{100 * number:+.{digits}g} %" if self.relative else f"{number:+.{digits}g}"

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

    The interval is ± t · SE with the jackknife's error of the difference (of the logarithms, for perplexities), each document
    left out of both runs at once, and Student's quantile of the effective number of documents, as `delta_interval` has
    them. The p value is that of a permutation test of the same difference which swaps A and B in each document by the toss of
    a coin (exact where 2^D is at most `num_resamples`). Documents of which no row counts in either run are left out.

    Args:
        metric: gives the value; its own state is not used.
        states_a, states_b: each document's packed sums, int64 ``(D, rows, 8)``.

    Raises:
        ComparisonError: unlike numbers of documents, or fewer than two; a metric without a slope, such as a quantile.

    References: Efron and Tibshirani (1993), chapters 11 and 15; Miller (2024), arXiv:2411.00640, on pairing.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> def run(*nll):
    ...     return torch.stack([metric.exact_sums(from_loglikelihoods([-x], row_kind="token")) for x in nll])
    >>> result = compare(metric, run(1.0, 2.0, 3.0, 4.0, 5.0), run(0.9, 1.8, 2.8, 3.9, 4.9))
    >>> round(result.difference, 4), result.p_value        # all five of one sign: 2/2^5
    (-0.14, 0.0625)
    """
    if not metric.has_standard_error:
        raise ComparisonError(f"{metric.name} has no slope in its sums, and so no error by leaving documents out")
    states_a, states_b = states_a.cpu(), states_b.cpu()
    if len(states_a) == len(states_b):
        samples = is_sample(states_a) | is_sample(states_b)
        states_a, states_b = states_a[samples], states_b[samples]
    if len(states_a) != len(states_b) or len(states_a) < 2:
        raise ComparisonError(
            f"a paired comparison needs the same two or more documents in both runs; got {len(states_a)} and {len(states_b)}"
        )
    a, b = exact_sum.to_float(states_a), exact_sum.to_float(states_b)
    value_a, value_b = (float(metric.value_of(exact_sum.merge(states))) for states in (states_a, states_b))
    scaled_a, scaled_b = on_scale(metric, torch.tensor([value_a, value_b], dtype=torch.float64)).tolist()
    estimates = leave_one_out(metric, b) - leave_one_out(metric, a)
    shift, error = scaled_b - scaled_a, jackknife_error(estimates)
    half = half_width(estimates, influence(metric, a) + influence(metric, b), confidence_level)
    relative = metric.interval_scale == "log"
    found = np.array([shift, shift - half, shift + half])
    if relative:
        with np.errstate(over="ignore"):
            found = np.expm1(found)
    difference, low, high = found.tolist()
    p_value = _permutation_p(metric, a, b, num_resamples, seed)
    return Comparison(
        metric=metric.name,
        value_a=value_a,
        value_b=value_b,
        difference=difference,
        standard_error=error * (1 + difference) if relative else error,
        low=low,
        high=high,
        p_value=p_value,
        documents=len(a),
        documents_needed=_documents_needed(shift, error, len(a)),
        better=_better(metric, low, high) if p_value <= 1 - confidence_level else None,
        confidence_level=confidence_level,
        relative=relative,
    )


def _permutation_p(metric: TokenMetric, a: Tensor, b: Tensor, num_resamples: int, seed: int) -> float:
    """P(|difference| at least the observed one) over swaps; nan where a sum isn't finite. `scipy.stats.permutation_test`
    does the same; it permutes each document's pair by itself, which takes some thirty times as long.
    """
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return math.nan
    total_a, total_b, change = a.sum(dim=0), b.sum(dim=0), b - a

    def difference(swaps: np.ndarray[Any, Any]) -> Tensor:
        moved = resample_totals(swaps, change)
        after = (on_scale(metric, values_of(metric, total)) for total in (total_a + moved, total_b - moved))
        first, second = after
        return second - first

    observed = difference(np.zeros((1, len(a)), dtype=np.uint8))[0].abs()
    scale = on_scale(metric, values_of(metric, torch.stack([total_a, total_b]))).abs().max()
    least = observed - 1e-12 * (scale + (metric.interval_scale == "log"))  # equal but for rounding
    exact = 2 ** min(len(a), 62) <= num_resamples
    found = [
        difference(swaps).abs() for swaps in (_every_swap(len(a)) if exact else _swaps(len(a), num_resamples, seed))
    ]
    extreme = sum(int((~(values < least)).sum()) for values in found)
    if bool(observed.isnan()):
        return math.nan
    return extreme / 2 ** len(a) if exact else (extreme + 1) / (num_resamples + 1)


def _every_swap(documents: int) -> Iterator[np.ndarray[Any, Any]]:
    yield np.arange(2**documents)[:, None] >> np.arange(documents) & 1


def _swaps(documents: int, count: int, seed: int) -> Iterator[np.ndarray[Any, Any]]:
    """`count` rows of coin tosses, ``(…, D)``, some at a time."""
    rng, size = np.random.default_rng(seed), max(1, 2**22 // documents)
    for start in range(0, count, size):
        yield rng.integers(2, size=(min(size, count - start), documents), dtype=np.uint8)


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
