"""Naive references of the metrics of two models in 50 digits, in the style of `reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
from mpmath import mpf

from support.reference import IGNORED, Rows, _top, probabilities


def _counted(base: Rows, other: Rows, targets: Sequence[int]) -> list[tuple[Sequence[float], Sequence[float], int]]:
    return [rows for rows in zip(base, other, targets, strict=True) if rows[2] != IGNORED]


def _mean(terms: Sequence[mpf]) -> mpf:
    return mpmath.fsum(terms) / len(terms)


def _kl(p: Sequence[mpf], q: Sequence[mpf]) -> mpf:
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))


def _distributions(base: Rows, other: Rows, targets: Sequence[int]) -> list[tuple[list[mpf], list[mpf]]]:
    return [(probabilities(a), probabilities(b)) for a, b, _ in _counted(base, other, targets)]


def kl_divergence(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    return _mean([_kl(p, q) for p, q in _distributions(base, other, targets)])


def soft_cross_entropy(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    terms = [-a * mpmath.log(b) for p, q in _distributions(base, other, targets) for a, b in zip(p, q, strict=True)]
    return mpmath.fsum(terms) / len(_counted(base, other, targets))


def jensen_shannon_divergence(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    terms = []
    for p, q in _distributions(base, other, targets):
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        terms.append((_kl(p, middle) + _kl(q, middle)) / 2)
    return _mean(terms)


def same_top_token(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    return _mean([mpf(_top(a) == _top(b)) for a, b, _ in _counted(base, other, targets)])


def _of_targets(base: Rows, other: Rows, targets: Sequence[int]) -> list[tuple[mpf, mpf]]:
    return [(probabilities(a)[target], probabilities(b)[target]) for a, b, target in _counted(base, other, targets)]


def probability_change(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    return _mean([q - p for p, q in _of_targets(base, other, targets)])


def rms_probability_change(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    return mpmath.sqrt(_mean([(q - p) ** 2 for p, q in _of_targets(base, other, targets)]))


def log_perplexity_ratio(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    return _mean([mpmath.log(p / q) for p, q in _of_targets(base, other, targets)])


def kl_divergence_quantile(base: Rows, other: Rows, targets: Sequence[int]) -> mpf:
    """The 99th percentile."""
    ordered = sorted(_kl(p, q) for p, q in _distributions(base, other, targets))
    return ordered[int(mpmath.ceil(mpf(99) / 100 * len(ordered))) - 1]


#: By registered name.
REFERENCES: dict[str, Callable[..., mpf]] = {
    function.__name__: function
    for function in (
        jensen_shannon_divergence,
        kl_divergence,
        kl_divergence_quantile,
        log_perplexity_ratio,
        probability_change,
        rms_probability_change,
        same_top_token,
        soft_cross_entropy,
    )
}
