"""Is B better than A? Two runs over the same documents, compared document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xent_metrics.analysis.intervals import half_width, scipy_stats
from xent_metrics.analysis.jackknife import influence, jackknife_error, leave_one_out, on_scale
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Comparison", "compare", "same_documents"]


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two runs over the same documents: B − A, in the metric's unit.

    Perplexities are compared by their ratio: `relative` is True, and `difference` is B/A − 1, with its standard error and
    interval. The ratio of two models' perplexities is known far more precisely than either perplexity.

    Attributes:
        p_value: of the hypothesis that A and B are exchangeable in each document.
        documents: the number of documents compared.
        documents_needed: how many such documents would show a difference of this size with 80 % power at the 5 % level.
        better: "A" or "B" if the metric defines which direction is better, the interval excludes 0 and the p value is at
            most 1 − `confidence_level`; otherwise None.
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
        """A difference formatted for display with its sign; in percent if it is relative."""
        return f"{100 * number:+.{digits}g} %" if self.relative else f"{number:+.{digits}g}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values, with None for non-finite numbers."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def compare(
    metric: TokenMetric,
    states_a: Tensor | SumsByDocument,
    states_b: Tensor | SumsByDocument,
    *,
    confidence_level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare two runs over the same documents, given in the same order.

    The interval is ± t · SE. The standard error is the jackknife's, which leaves each document out of both runs at once;
    t is Student's quantile for the effective number of documents, as in `delta_interval`. For perplexities both are those
    of the difference of the logarithms. The p value is that of a permutation test which swaps A and B at random in each
    document (exact if 2^D ≤ `num_resamples`). Documents without a counted row in either run are skipped; those with rows in
    one run only stay.

    Args:
        metric: the metric to compare; its own state is not used.
        states_a: each document's packed sums in run A, int64 ``(D, rows, 8)``, or `SumsByDocument`.
        states_b: the same documents' packed sums in run B.
        confidence_level: of the interval.
        num_resamples: the number of random swaps of the permutation test.
        seed: seeds the permutation test.

    Raises:
        ComparisonError: different numbers of documents, fewer than two, or a metric that isn't a differentiable function
            of its sums, such as a quantile.

    References: Efron and Tibshirani (1993), chapters 11 and 15; Miller (2024), arXiv:2411.00640, on pairing.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> def run(*nll):
    ...     return torch.stack([metric.exact_sums(from_loglikelihoods([-x], row_kind="token")) for x in nll])
    >>> result = compare(metric, run(1.0, 2.0, 3.0, 4.0, 5.0), run(0.9, 1.8, 2.8, 3.9, 4.9))
    >>> round(result.difference, 4), result.p_value        # all five of one sign: 2/2^5
    (-0.14, 0.0625)
    """
    _require_standard_error(metric)
    documents_a, documents_b = _samples(SumsByDocument.of(states_a), SumsByDocument.of(states_b))
    value_a, value_b = (float(metric.value_of(documents.total)) for documents in (documents_a, documents_b))
    a, b = documents_a.sums, documents_b.sums
    shift = _shift(metric, a, b, (value_a, value_b), confidence_level)
    p_value = permutation_p_value(metric, a, b, num_resamples=num_resamples, seed=seed)
    return Comparison(
        metric=metric.name,
        value_a=value_a,
        value_b=value_b,
        **_in_unit(metric, shift),
        p_value=p_value,
        documents=len(a),
        documents_needed=_documents_needed(shift.difference, shift.error, len(a)),
        better=_better(metric, shift) if p_value <= 1 - confidence_level else None,
        confidence_level=confidence_level,
        relative=metric.interval_scale == "log",
    )


def _require_standard_error(metric: TokenMetric) -> None:
    if not metric.has_standard_error:
        raise ComparisonError(
            f"{metric.name} is not a differentiable function of its sums, so its differences have no standard error"
        )


def _samples(a: SumsByDocument, b: SumsByDocument) -> tuple[SumsByDocument, SumsByDocument]:
    """The documents that are samples in at least one run; raises unless both runs have the same two or more."""
    if len(a) == len(b):
        samples = a.samples | b.samples
        a, b = a.without_empty(samples), b.without_empty(samples)
    if len(a) != len(b) or len(a) < 2:
        raise ComparisonError(
            "a paired comparison needs the same documents in both runs, at least two of them; got "
            f"{len(a)} and {len(b)}"
        )
    return a, b


class _Shift(NamedTuple):
    """The difference on the metric's scale, its standard error and the half-width of its interval."""

    difference: float
    error: float
    half_width: float

    @property
    def low(self) -> float:
        return self.difference - self.half_width

    @property
    def high(self) -> float:
        return self.difference + self.half_width


def _shift(metric: TokenMetric, a: Tensor, b: Tensor, values: tuple[float, float], confidence_level: float) -> _Shift:
    """The difference of two values with the jackknife's error; `a` and `b` are the documents' sums ``(D, rows)``."""
    scaled_a, scaled_b = on_scale(metric, torch.tensor(values, dtype=torch.float64)).tolist()
    # Each document is left out of both runs at once: the estimates are paired, so their difference is.
    estimates = leave_one_out(metric, b) - leave_one_out(metric, a)
    half = half_width(estimates, influence(metric, a) + influence(metric, b), confidence_level)
    return _Shift(scaled_b - scaled_a, jackknife_error(estimates), half)


def _in_unit(metric: TokenMetric, shift: _Shift) -> dict[str, float]:
    """The difference, error and interval in the metric's unit; a difference x of logarithms becomes e^x − 1."""
    found, is_log = np.array([shift.difference, shift.low, shift.high]), metric.interval_scale == "log"
    if is_log:
        with np.errstate(over="ignore"):
            found = np.expm1(found)
    difference, low, high = found.tolist()
    error = shift.error * (1 + difference) if is_log else shift.error
    return {"difference": difference, "standard_error": error, "low": low, "high": high}


def _documents_needed(
    difference: float, error: float, documents: int, power: float = 0.8, level: float = 0.05
) -> float:
    norm = scipy_stats().norm
    z = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    if difference == 0 or not math.isfinite(difference) or not math.isfinite(error):
        return math.inf
    return float(max(2, math.ceil(documents * (z * error / difference) ** 2)))


def _better(metric: TokenMetric, shift: _Shift) -> str | None:
    """The better run if the interval excludes zero and the metric defines which direction is better."""
    if metric.higher_is_better is None or not (shift.low > 0 or shift.high < 0):
        return None
    return "B" if (shift.low > 0) == metric.higher_is_better else "A"


def same_documents(a: Sequence[str], b: Sequence[str], called: str = "B") -> None:
    """Raise `ComparisonError` unless two runs saw the same documents, given by hash in any order.

    Args:
        a: the documents of run A.
        b: those of run B.
        called: what the message calls run B.

    >>> same_documents(["x", "y"], ["y", "z"])
    Traceback (most recent call last):
        ...
    xent_metrics.errors.ComparisonError: the runs saw different documents: 1 in both, 1 only in A, 1 only in B...
    """
    first, second = set(a), set(b)
    if first != second or len(a) != len(b):
        raise ComparisonError(
            f"the runs saw different documents: {len(first & second)} in both, {len(first - second)} only in A, "
            f"{len(second - first)} only in {called}. Evaluate both on the same task, version, split and --limit, or compare "
            "only the documents that both have (--shared-documents)"
        )
