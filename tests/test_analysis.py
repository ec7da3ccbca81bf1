"""Intervals and comparisons against scipy and by simulation: a 95 % interval covers 93 to 97 %."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from xent_metrics import CrossEntropy, ExpectedCalibrationError, TokenScores, get_metric
from xent_metrics.analysis import bootstrap, compare, delta_interval, same_documents, standard_error
from xent_metrics.errors import ComparisonError
from xent_metrics.exact_sum import exact_sum_by_bin, to_float


def document(nll: np.ndarray) -> torch.Tensor:
    """The packed sums of one document's tokens."""
    values = torch.as_tensor(nll)
    scores = TokenScores(nll=values, counted=torch.ones_like(values, dtype=torch.bool))
    return CrossEntropy().exact_sums(scores)


def packed(y: np.ndarray, x: np.ndarray) -> torch.Tensor:
    """States of cross entropy with the sums `y` nats over `x` tokens a document, made without tokens, ``(D, rows, 8)``."""
    states = torch.zeros(len(y), *CrossEntropy().state.shape, dtype=torch.int64)
    for row, values in ((-2, torch.as_tensor(y, dtype=torch.float64)), (-1, torch.as_tensor(x))):
        states[:, row] = exact_sum_by_bin(values, torch.arange(len(y)), len(y))
    return states


@pytest.fixture(scope="module")
def documents() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(5, 200, size=40)
    return x * rng.gamma(4, 0.5, size=40), x


def test_packed_states_are_those_of_documents():
    nll = np.array([0.5, 1.25, 3.0])
    assert torch.equal(to_float(packed(nll.sum(keepdims=True), np.array([3])))[0, -2:], to_float(document(nll))[-2:])


def test_delta_interval_is_the_ratio_estimator_with_students_quantile(documents):
    y, x = documents
    ratio = y.sum() / x.sum()
    error = np.sqrt(40 / 39 * ((y - ratio * x) ** 2).sum()) / x.sum()
    interval = delta_interval(CrossEntropy(), packed(y, x))
    low, high = stats.t.interval(0.95, 39, loc=ratio, scale=error)
    assert (interval.value, interval.standard_error) == pytest.approx((ratio, error), rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_is_scipys_on_the_same_ratio(documents, method):
    y, x = documents
    ours = bootstrap(CrossEntropy(), packed(y, x), method=method, num_resamples=500)

    def ratio(y, x, axis):
        return y.sum(axis) / x.sum(axis)

    theirs = stats.bootstrap((y, x.astype(float)), ratio, paired=True, method=method, n_resamples=4000, rng=1)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.12)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=0.04)
    assert ours.low < ours.value < ours.high


def test_delta_and_bootstrap_agree_for_a_metric_that_is_no_ratio():
    metric, rng = ExpectedCalibrationError(num_bins=5), torch.Generator().manual_seed(0)
    states = []
    for _ in range(60):
        confidence = torch.rand(50, generator=rng)
        correct = torch.rand(50, generator=rng) < confidence**2
        nll = torch.zeros(50)
        scores = TokenScores(nll=nll, counted=nll == 0, confidence=confidence, correct=correct)
        states.append(metric.exact_sums(scores))
    ours = standard_error(metric, torch.stack(states))
    assert ours == pytest.approx(bootstrap(metric, torch.stack(states), num_resamples=500).standard_error, rel=0.15)


def test_few_documents_have_no_interval(documents):
    y, x = documents
    for method in (delta_interval, bootstrap):
        one = method(CrossEntropy(), packed(y[:1], x[:1]))
        assert one.value == pytest.approx(y[0] / x[0])
        assert np.isnan([one.standard_error, one.low, one.high]).all()
        assert np.isnan(method(CrossEntropy(), packed(y[:0], x[:0])).value)


def test_a_95_percent_interval_covers_93_to_97_percent():
    """1,500 corpora of 40 documents, unequal lengths, tokens of one document alike: the truth is in the interval."""
    rng, covered, trials, size = np.random.default_rng(1), 0, 1500, 40
    x = rng.integers(20, 60, size=(trials, size))
    level = rng.gamma(9, 1 / 3, size=(trials, size))  # each document's own mean, 3 nats on average
    y = x * level + rng.normal(size=(trials, size)) * np.sqrt(x)
    for nats, tokens in zip(y, x, strict=True):
        interval = delta_interval(CrossEntropy(), packed(nats, tokens))
        covered += interval.low <= 3.0 <= interval.high
    assert 0.93 <= covered / trials <= 0.97


def test_a_comparison_without_difference_rejects_as_often_as_it_says():
    rng, rejected, outside, trials = np.random.default_rng(2), 0, 0, 300
    for _ in range(trials):
        x = rng.integers(20, 60, size=20)
        shared = rng.gamma(9, 1 / 3, size=20)
        a, b = (x * (shared + 0.1 * rng.normal(size=20)) for _ in range(2))
        result = compare(CrossEntropy(), packed(a, x), packed(b, x), num_resamples=199)
        rejected += result.p_value <= 0.05
        outside += result.low > 0 or result.high < 0
    assert rejected / trials <= 0.09
    assert 0.02 <= outside / trials <= 0.09


def test_pairing_finds_a_small_difference_that_the_runs_alone_hide(documents):
    y, x = documents
    better = y - 0.02 * x + 0.001 * np.sin(np.arange(40)) * x
    a, b = packed(y, x), packed(better, x)
    result = compare(CrossEntropy(), a, b, num_resamples=999)
    assert result.better == "B"
    assert result.high < 0
    assert result.p_value <= 0.002
    assert result.documents_needed <= 5
    assert result.difference == pytest.approx((better.sum() - y.sum()) / x.sum())
    assert result.standard_error < standard_error(CrossEntropy(), a) / 100
    back = compare(CrossEntropy(), b, a, num_resamples=999)
    assert back.better == "A"
    assert back.difference == -result.difference


def test_the_permutation_test_is_scipys_on_a_mean():
    rng = np.random.default_rng(3)
    a, b, ones = rng.normal(3, 1, size=9), rng.normal(3.6, 1, size=9), np.ones(9, dtype=int)
    ours = compare(CrossEntropy(), packed(a, ones), packed(b, ones))  # 2^9 ≤ 9,999: every swap once
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: y.mean(axis) - x.mean(axis), permutation_type="samples", vectorized=True
    )
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_documents_needed_has_the_power_it_promises():
    """At the promised number of documents about 80 % of comparisons find the difference."""
    rng = np.random.default_rng(4)
    ones = np.ones(400, dtype=int)
    a, b = (rng.normal(3 + shift, 0.5, size=400) for shift in (0, 0.1))
    result = compare(CrossEntropy(), packed(a, ones), packed(b, ones), num_resamples=9)
    spread = result.standard_error * np.sqrt(400)
    draws = rng.normal(result.difference, spread, size=(1000, int(result.documents_needed)))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert 0.75 < found.mean() < 0.85


def test_unlike_documents_are_refused(documents):
    y, x = documents
    with pytest.raises(ComparisonError, match="the same two or more documents in both runs; got 40 and 39"):
        compare(CrossEntropy(), packed(y, x), packed(y[1:], x[1:]))
    with pytest.raises(ComparisonError, match="1 in both, 1 only in A, 1 only in B"):
        same_documents(["a", "b"], ["b", "c"])
    same_documents(["a", "b"], ["b", "a"])


def test_an_identical_run_is_no_difference(documents):
    states = packed(*documents)
    result = compare(get_metric("perplexity"), states, states, num_resamples=99)
    assert (result.difference, result.p_value, result.better) == (0.0, 1.0, None)
    assert result.to_json()["documents_needed"] is None
