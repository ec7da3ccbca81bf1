"""Is B better than A? Two runs over the same documents, compared document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xent_metrics.analysis.jackknife import influence, jackknife_error, leave_one_out, on_scale
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.analysis.scipy_stats import scipy_stats
from xent_metrics.analysis.skewed_t import reach, reliability_note
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.analysis.zero_one import mcnemar_p_value, newcombe_interval, outcomes
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Comparison", "compare", "documents_needed", "same_documents"]


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two runs over the same documents: B − A, in the metric's unit.

    Perplexities are compared by their ratio: `relative` is True, and `difference` is B/A − 1, with its standard error and
    interval. The ratio of two models' perplexities is known far more precisely than either perplexity.

    Attributes:
        p_value: of the hypothesis that A and B are exchangeable in each document.
        documents: the number of documents compared.
        documents_needed: how many such documents would show a difference of this size with 80 % power at the 5 % level, or at
            Holm's level if it was made together with others.
        favoured: "A" or "B" if the metric defines which direction is better and the interval excludes 0; otherwise None.
        p_holm, p_bh: the p value corrected for the comparisons that it was made together with, by Holm's method and by
            Benjamini and Hochberg's; see `corrected`. Of a single one, the p value.
        test: "permutation", or "McNemar" for a metric that is 0 or 1 on each document.
        note: why the interval may not cover; empty if nothing speaks against it.
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
    favoured: str | None
    p_holm: float
    p_bh: float
    confidence_level: float = 0.95
    relative: bool = False
    test: str = "permutation"
    note: str = ""

    @property
    def significant(self) -> bool:
        """True if the interval excludes 0 and Holm's p value is at most 1 − `confidence_level`."""
        return (self.low > 0 or self.high < 0) and self.p_holm <= 1 - self.confidence_level

    @property
    def better(self) -> str | None:
        """The better run, "A" or "B", of a significant difference if the metric says which direction is better."""
        return self.favoured if self.significant else None

    @property
    def documents_missing(self) -> float:
        """How many more documents a verdict is likely to take; 0 if there is one, inf if there is no difference."""
        return 0.0 if self.significant else max(0.0, self.documents_needed - self.documents)

    def shown(self, number: float, digits: int = 3) -> str:
        """A difference formatted for display with its sign; in percent if it is relative."""
        return f"{100 * number:+.{digits}g} %" if self.relative else f"{number:+.{digits}g}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values, with None for non-finite numbers."""
        derived = {name: getattr(self, name) for name in ("better", "significant", "documents_missing")}
        values = asdict(self) | derived
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

    The interval is that of `delta_interval`, with each document left out of both runs at once. For perplexities it is that of
    the difference of the logarithms. The p value is that of a permutation test which swaps A and B at random in each
    document (exact if 2^D ≤ `num_resamples`). If the metric is 0 or 1 on each document, the interval is Newcombe's and the test
    is McNemar's, which is the exact permutation test. Documents without a counted row in either run are skipped;
    those with rows in one run only stay.

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

    References: Efron and Tibshirani (1993), chapters 11 and 15; Miller (2024), arXiv:2411.00640, on pairing; those of `zero_one`.

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
    if (right := _outcomes(metric, a, b)) is not None:
        low, high = newcombe_interval(*right, confidence_level)
        shift = shift._replace(low=low, high=high, note="")
        return _comparison(
            metric, shift, (value_a, value_b), mcnemar_p_value(*right), len(a), confidence_level, "McNemar"
        )
    p_value = permutation_p_value(metric, a, b, num_resamples=num_resamples, seed=seed)
    return _comparison(metric, shift, (value_a, value_b), p_value, len(a), confidence_level, "permutation")


def _comparison(
    metric: TokenMetric,
    shift: _Shift,
    values: tuple[float, float],
    p_value: float,
    documents: int,
    confidence_level: float,
    test: str,
) -> Comparison:
    return Comparison(
        metric=metric.name,
        value_a=values[0],
        value_b=values[1],
        **_in_unit(metric, shift),
        p_value=p_value,
        documents=documents,
        documents_needed=documents_needed(shift.difference, shift.error, documents, level=1 - confidence_level),
        favoured=_favoured(metric, shift),
        p_holm=p_value,
        p_bh=p_value,
        confidence_level=confidence_level,
        relative=metric.interval_scale == "log",
        test=test,
        note=shift.note,
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


def _outcomes(metric: TokenMetric, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """0 or 1 of each document in both runs, if that is what the metric gives."""
    in_a, in_b = outcomes(metric, a), outcomes(metric, b)
    return None if in_a is None or in_b is None else (in_a, in_b)


class _Shift(NamedTuple):
    """The difference on the metric's scale, its standard error, its interval, and what speaks against that."""

    difference: float
    error: float
    low: float
    high: float
    note: str


def _shift(metric: TokenMetric, a: Tensor, b: Tensor, values: tuple[float, float], confidence_level: float) -> _Shift:
    """The difference of two values with the jackknife's error; `a` and `b` are the documents' sums ``(D, rows)``."""
    scaled_a, scaled_b = on_scale(metric, torch.tensor(values, dtype=torch.float64)).tolist()
    # Each document is left out of both runs at once: the estimates are paired, so their difference is.
    estimates, difference = leave_one_out(metric, b) - leave_one_out(metric, a), scaled_b - scaled_a
    below, above, lean = reach(estimates, influence(metric, a) + influence(metric, b), confidence_level)
    note = reliability_note(len(a), lean)
    return _Shift(difference, jackknife_error(estimates), difference - below, difference + above, note)


def _in_unit(metric: TokenMetric, shift: _Shift) -> dict[str, float]:
    """The difference, error and interval in the metric's unit; a difference x of logarithms becomes e^x − 1."""
    found, is_log = np.array([shift.difference, shift.low, shift.high]), metric.interval_scale == "log"
    if is_log:
        with np.errstate(over="ignore"):
            found = np.expm1(found)
    difference, low, high = found.tolist()
    error = shift.error * (1 + difference) if is_log else shift.error
    return {"difference": difference, "standard_error": error, "low": low, "high": high}


def documents_needed(
    difference: float, error: float, documents: int, *, level: float = 0.05, power: float = 0.8
) -> float:
    """How many documents like these would show a difference of this size; inf if there is none.

    D · (z · SE / difference)² with z = z(1 − level/2) + z(power), but no fewer than 1 + log₂(1/level): with fewer, no
    permutation test can show anything.

    Args:
        difference: what was found, on the scale of the test.
        error: its standard error.
        documents: the number of documents it was found with.
        level: of the test.
        power: the chance of showing it.

    >>> documents_needed(0.1, 0.1, 10)      # 10 · (1.96 + 0.84)²
    79.0
    """
    norm = scipy_stats().norm
    z = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    if difference == 0 or not math.isfinite(difference) or not math.isfinite(error):
        return math.inf
    return float(max(math.ceil(1 - math.log2(level)), math.ceil(documents * (z * error / difference) ** 2)))


def _favoured(metric: TokenMetric, shift: _Shift) -> str | None:
    """The better run if the interval excludes zero and the metric defines which direction is better."""
    if metric.higher_is_better is None or not (shift.low > 0 or shift.high < 0):
        return None
    return "B" if (shift.low > 0) == metric.higher_is_better else "A"


def same_documents(a: Sequence[str], b: Sequence[str], names: tuple[str, str] = ("A", "B")) -> None:
    """Raise `ComparisonError` unless two runs saw the same documents, given by hash in any order.

    Args:
        a: the documents of run A.
        b: those of run B.
        names: what the message calls the runs.

    >>> same_documents(["x", "y"], ["y", "z"])
    Traceback (most recent call last):
        ...
    xent_metrics.errors.ComparisonError: the runs saw different documents: 1 in both, 1 only in A, 1 only in B...
    """
    first, second = set(a), set(b)
    if first != second or len(a) != len(b):
        raise ComparisonError(
            f"the runs saw different documents: {len(first & second)} in both, {len(first - second)} only in {names[0]}, "
            f"{len(second - first)} only in {names[1]}. Evaluate both on the same task, version, split and --limit, or compare "
            "only the documents that both have (--shared-documents)"
        )
