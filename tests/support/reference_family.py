"""More naive references, from the definitions: ranking, whole distributions, binary, calibration, temperature.

In 50 digits, as in reference.py; the best temperature by scipy's search over the logits themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import mpmath
import numpy as np
import scipy.optimize
import scipy.special
from mpmath import mpf

from support.reference import IGNORED, Rows, cross_entropy, probabilities

Counted = list[tuple[list[mpf], int]]


def _counted(rows: Rows, targets: Sequence[int]) -> Counted:
    """The probabilities and the target of each row that counts."""
    return [(probabilities(row), target) for row, target in zip(rows, targets, strict=True) if target != IGNORED]


def _mean(values: Sequence[mpf]) -> mpf:
    return mpmath.fsum(values) / len(values)


def _rank(row: Sequence[float], target: int) -> int:
    return 1 + sorted(range(len(row)), key=lambda v: -row[v]).index(target)  # sorted is stable


def _ranks(rows: Rows, targets: Sequence[int]) -> list[int]:
    return [_rank(row, target) for row, target in zip(rows, targets, strict=True) if target != IGNORED]


def top_k_accuracy(rows: Rows, targets: Sequence[int], k: int = 5) -> mpf:
    return _mean([mpf(rank <= k) for rank in _ranks(rows, targets)])


def mean_reciprocal_rank(rows: Rows, targets: Sequence[int]) -> mpf:
    return _mean([mpf(1) / rank for rank in _ranks(rows, targets)])


def prediction_entropy(rows: Rows, targets: Sequence[int]) -> mpf:
    return _mean([-mpmath.fsum(p * mpmath.log(p) for p in probs) for probs, _ in _counted(rows, targets)])


def brier_score(rows: Rows, targets: Sequence[int]) -> mpf:
    return _mean([
        mpmath.fsum((p - (v == target)) ** 2 for v, p in enumerate(probs)) for probs, target in _counted(rows, targets)
    ])  # fmt: skip


def z_loss(rows: Rows, targets: Sequence[int]) -> mpf:
    kept = [row for row, target in zip(rows, targets, strict=True) if target != IGNORED]
    return _mean([mpmath.log(mpmath.fsum(mpmath.exp(mpf(x)) for x in row)) ** 2 for row in kept])


def binary_cross_entropy(forecasts: Sequence[float], targets: Sequence[int], from_logits: bool = True) -> mpf:
    terms = []
    for forecast, target in zip(forecasts, targets, strict=True):
        if target != IGNORED:
            p = 1 / (1 + mpmath.exp(-mpf(forecast))) if from_logits else mpf(forecast)
            terms.append(-mpmath.log(p if target else 1 - p))
    return _mean(terms)


def mean_confidence(rows: Rows, targets: Sequence[int]) -> mpf:
    return _mean([max(probs) for probs, _ in _counted(rows, targets)])


def overconfidence(rows: Rows, targets: Sequence[int]) -> mpf:
    return _mean([max(probs) - (probs.index(max(probs)) == target) for probs, target in _counted(rows, targets)])


def _cell(confidence: mpf) -> int:
    """Of 256 cells, equally wide in arcsin √confidence."""
    return min(255, int(mpmath.asin(mpmath.sqrt(confidence)) / (mpmath.pi / 2) * 256))


def _bins(rows: Rows, targets: Sequence[int], num_bins: int, binning: str) -> Iterator[tuple[int, mpf, int]]:
    """The number of rows, their mean confidence and the number of hits of each bin that holds rows."""
    facts = [(max(probs), probs.index(max(probs)) == target) for probs, target in _counted(rows, targets)]
    bins: dict[int, list[tuple[mpf, bool]]] = {}
    for confidence, hit in facts:
        place = int(mpmath.ceil(confidence * num_bins))
        if binning == "mass":  # the bin of the middle row of the cell, all rows in order of their cells
            before = sum(_cell(c) < _cell(confidence) for c, _ in facts)
            inside = sum(_cell(c) == _cell(confidence) for c, _ in facts)
            place = int((before + mpf(inside) / 2) * num_bins / len(facts))
        bins.setdefault(place, []).append((confidence, hit))
    for entries in bins.values():
        yield len(entries), _mean([c for c, _ in entries]), sum(hit for _, hit in entries)


def expected_calibration_error(rows: Rows, targets: Sequence[int], num_bins: int = 15, binning: str = "width") -> mpf:
    bins = list(_bins(rows, targets, num_bins, binning))
    return mpmath.fsum(n * abs(mpf(hits) / n - c) for n, c, hits in bins) / sum(n for n, _, _ in bins)


def _divergence(a: mpf, c: mpf) -> mpf:
    """KL of a yes-or-no with chance a from one with chance c."""
    return mpmath.fsum(x * mpmath.log(x / y) for x, y in ((a, c), (1 - a, 1 - c)) if x > 0)


def calibration_loss(rows: Rows, targets: Sequence[int], num_bins: int = 15, binning: str = "width") -> mpf:
    bins = list(_bins(rows, targets, num_bins, binning))
    return mpmath.fsum(n * _divergence(mpf(hits) / n, c) for n, c, hits in bins) / sum(n for n, _, _ in bins)


def refinement_loss(rows: Rows, targets: Sequence[int], **options: object) -> mpf:
    return cross_entropy(rows, targets) - calibration_loss(rows, targets, **options)


def _all_bins(pairs: Sequence[tuple[mpf, bool]], num_bins: int) -> mpf:
    """Σ_b n_b |frequency_b − mean probability_b| over pairs of a probability and whether it was the target's."""
    bins: dict[int, list[tuple[mpf, bool]]] = {}
    for p, hit in pairs:
        bins.setdefault(int(mpmath.ceil(p * num_bins)), []).append((p, hit))
    return mpmath.fsum(
        len(e) * abs(_mean([mpf(hit) for _, hit in e]) - _mean([p for p, _ in e])) for e in bins.values()
    )


def full_calibration_error(rows: Rows, targets: Sequence[int], num_bins: int = 15) -> mpf:
    counted = _counted(rows, targets)
    pairs = [(p, v == target) for probs, target in counted for v, p in enumerate(probs)]
    return _all_bins(pairs, num_bins) / len(counted)


def classwise_calibration_error(
    rows: Rows, targets: Sequence[int], classes: int | Sequence[int] = 2, num_bins: int = 15
) -> mpf:
    counted = _counted(rows, targets)
    ids = range(classes) if isinstance(classes, int) else classes
    each = [_all_bins([(probs[v], v == target) for probs, target in counted], num_bins) for v in ids]
    return _mean(each) / len(counted)


def _best(rows: Rows, targets: Sequence[int], lowest: float, highest: float) -> tuple[float, float]:
    kept = np.array([row for row, target in zip(rows, targets, strict=True) if target != IGNORED])
    index = np.array([target for target in targets if target != IGNORED])

    def loss(log_temperature: float) -> float:
        logits = kept / math.exp(log_temperature)
        return float(np.mean(scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(index)), index]))

    bounds = (math.log(lowest), math.log(highest))
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x), found.fun


def optimal_temperature(rows: Rows, targets: Sequence[int], lowest: float = 0.25, highest: float = 4.0) -> float:
    return _best(rows, targets, lowest, highest)[0]


def cross_entropy_at_optimal_temperature(
    rows: Rows, targets: Sequence[int], lowest: float = 0.25, highest: float = 4.0
) -> float:
    return _best(rows, targets, lowest, highest)[1]


#: By registered name.
REFERENCES: dict[str, Callable[..., mpf]] = {
    function.__name__: function
    for function in (
        binary_cross_entropy,
        brier_score,
        calibration_loss,
        classwise_calibration_error,
        cross_entropy_at_optimal_temperature,
        expected_calibration_error,
        full_calibration_error,
        mean_reciprocal_rank,
        optimal_temperature,
        mean_confidence,
        overconfidence,
        prediction_entropy,
        refinement_loss,
        top_k_accuracy,
        z_loss,
    )
}
