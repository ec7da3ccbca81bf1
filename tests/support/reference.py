"""Naive references in 50 digits, written from the definitions and from nothing in the package.

Rows are lists of numbers, one a class; targets are ints, and rows whose target is -100 don't count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
from mpmath import mpf

mpmath.mp.dps = 50
IGNORED = -100
Rows = Sequence[Sequence[float]]


def probabilities(row: Sequence[float]) -> list[mpf]:
    powers = [mpmath.exp(mpf(logit)) for logit in row]
    return [power / mpmath.fsum(powers) for power in powers]


def nll(row: Sequence[float], target: int) -> mpf:
    return -mpmath.log(probabilities(row)[target])


def _counted(rows: Rows, targets: Sequence[int]) -> list[tuple[Sequence[float], int]]:
    return [(row, target) for row, target in zip(rows, targets, strict=True) if target != IGNORED]


def nats(rows: Rows, targets: Sequence[int]) -> mpf:
    return mpmath.fsum(nll(row, target) for row, target in _counted(rows, targets))


def cross_entropy(rows: Rows, targets: Sequence[int], **_: object) -> mpf:
    return nats(rows, targets) / len(_counted(rows, targets))


def perplexity(rows: Rows, targets: Sequence[int], **_: object) -> mpf:
    return mpmath.exp(cross_entropy(rows, targets))


def weighted_cross_entropy(rows: Rows, targets: Sequence[int], weights: Sequence[float]) -> mpf:
    pairs = [(mpf(w), nll(r, t)) for w, r, t in zip(weights, rows, targets, strict=True) if t != IGNORED]
    return mpmath.fsum(w * x for w, x in pairs) / mpmath.fsum(w for w, _ in pairs)


def soft_cross_entropy(rows: Rows, distributions: Rows) -> mpf:
    terms = [
        -mpf(q) * mpmath.log(p)
        for row, distribution in zip(rows, distributions, strict=True)
        for q, p in zip(distribution, probabilities(row), strict=True)
        if q > 0
    ]
    return mpmath.fsum(terms) / len(rows)


def training_loss(rows: Rows, targets: Sequence[int], smoothing: float, class_weight: Sequence[float]) -> mpf:
    """The mean that torch documents for class indices: Σ l_n / Σ w_{y_n}, with label smoothing (Szegedy et al. 2015)."""
    total, weight, classes = mpf(0), mpf(0), len(class_weight)
    for row, target in _counted(rows, targets):
        smooth = [mpf(smoothing) / classes + (1 - mpf(smoothing)) * (c == target) for c in range(classes)]
        logs = [mpmath.log(p) for p in probabilities(row)]
        total -= mpmath.fsum(mpf(w) * q * x for w, q, x in zip(class_weight, smooth, logs, strict=True))
        weight += mpf(class_weight[target])
    return total / weight


def _nats_with_length(rows: Rows, targets: Sequence[int], lengths: Sequence[int]) -> tuple[mpf, int]:
    """The nats of the rows that have a length, and the lengths' sum."""
    kept = [(r, t, n) for r, t, n in zip(rows, targets, lengths, strict=True) if t != IGNORED and n > 0]
    return nats([r for r, _, _ in kept], [t for _, t, _ in kept]), sum(n for _, _, n in kept)


def bits_per_byte(rows: Rows, targets: Sequence[int], num_bytes: Sequence[int], **_: object) -> mpf:
    total, length = _nats_with_length(rows, targets, num_bytes)
    return total / mpmath.log(2) / length


def byte_perplexity(rows: Rows, targets: Sequence[int], num_bytes: Sequence[int], **_: object) -> mpf:
    return mpf(2) ** bits_per_byte(rows, targets, num_bytes)


def word_perplexity(rows: Rows, targets: Sequence[int], num_words: Sequence[int], **_: object) -> mpf:
    total, length = _nats_with_length(rows, targets, num_words)
    return mpmath.exp(total / length)


def _top(row: Sequence[float]) -> int:
    return list(row).index(max(row))


def token_accuracy(rows: Rows, targets: Sequence[int], **_: object) -> mpf:
    hits = [_top(row) == target for row, target in _counted(rows, targets)]
    return mpf(sum(hits)) / len(hits)


def _by_bin(rows: Rows, targets: Sequence[int], num_bins: int) -> list[tuple[int, mpf, int, mpf]]:
    """(tokens, Σ confidence, hits, nats) of each bin (b/M, (b + 1)/M] that has any."""
    bins: dict[int, list[tuple[mpf, bool, mpf]]] = {}
    for row, target in _counted(rows, targets):
        confidence = max(probabilities(row))
        entry = (confidence, _top(row) == target, nll(row, target))
        bins.setdefault(int(mpmath.ceil(confidence * num_bins)), []).append(entry)
    return [
        (len(e), mpmath.fsum(c for c, _, _ in e), sum(h for _, h, _ in e), mpmath.fsum(x for _, _, x in e))
        for e in bins.values()
    ]


def _gaps(rows: Rows, targets: Sequence[int], num_bins: int) -> list[tuple[mpf, mpf]]:
    """The share and the gap of each bin that holds rows."""
    bins = _by_bin(rows, targets, num_bins)
    total = sum(n for n, _, _, _ in bins)
    return [(mpf(n) / total, abs(mpf(hits) / n - confidence / n)) for n, confidence, hits, _ in bins]


def expected_calibration_error(rows: Rows, targets: Sequence[int], num_bins: int = 15, **_: object) -> mpf:
    return mpmath.fsum(share * gap for share, gap in _gaps(rows, targets, num_bins))


def maximum_calibration_error(rows: Rows, targets: Sequence[int], num_bins: int = 15, **_: object) -> mpf:
    return max(gap for _, gap in _gaps(rows, targets, num_bins))


def rms_calibration_error(rows: Rows, targets: Sequence[int], num_bins: int = 15, **_: object) -> mpf:
    return mpmath.sqrt(mpmath.fsum(share * gap**2 for share, gap in _gaps(rows, targets, num_bins)))


def calibration_weighted_cross_entropy(
    rows: Rows, targets: Sequence[int], num_bins: int = 15, strength: float = 1.0, **_: object
) -> mpf:
    above = below = mpf(0)
    for n, confidence, hits, bin_nats in _by_bin(rows, targets, num_bins):
        weight = 1 + mpf(strength) * abs(mpf(hits) / n - confidence / n)
        above += weight * bin_nats
        below += weight * n
    return above / below


#: By registered name.
REFERENCES: dict[str, Callable[..., mpf]] = {
    function.__name__: function
    for function in (
        cross_entropy,
        perplexity,
        bits_per_byte,
        byte_perplexity,
        word_perplexity,
        token_accuracy,
        expected_calibration_error,
        maximum_calibration_error,
        rms_calibration_error,
        calibration_weighted_cross_entropy,
    )
}
