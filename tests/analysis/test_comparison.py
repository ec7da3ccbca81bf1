"""Paired comparisons by simulation and by hand: intervals of the difference, verdicts, and what can't be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from support.corpora import LENGTHS, corpora, ends, of_ratio, packed

from xent_metrics import CrossEntropy, Perplexity, get_metric
from xent_metrics.analysis import compare, delta_interval, same_documents
from xent_metrics.errors import ComparisonError
from xent_metrics.wrappers.standard_error import standard_error


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [20, 40, 100])
def test_an_interval_of_a_paired_difference_covers_93_to_97_percent(lengths, size):
    """B is 0.2 nats per token worse on average, by an amount that varies by document."""
    rng, x, y = corpora(lengths, size)
    b = y + x * (0.2 + 0.3 * rng.normal(size=x.shape)) + rng.normal(size=x.shape) * np.sqrt(x)
    of_a, of_b = of_ratio(y, x), of_ratio(b, x)
    low, high = ends(*(second - first for first, second in zip(of_a[:2], of_b[:2], strict=True)), of_a[2] + of_b[2])
    assert 0.93 <= ((low <= 0.2) & (high >= 0.2)).mean() <= 0.97
    for i in range(10):
        ours = compare(CrossEntropy(), packed(y[i], x[i]), packed(b[i], x[i]), num_resamples=1)
        assert (ours.low, ours.high) == pytest.approx((low[i], high[i]), rel=1e-7)
        ratio = compare(Perplexity(), packed(y[i], x[i]), packed(b[i], x[i]), num_resamples=1)
        assert ratio.relative
        assert ratio.difference == pytest.approx(ratio.value_b / ratio.value_a - 1, rel=1e-9)
        assert np.log1p([ratio.low, ratio.high]) == pytest.approx([low[i], high[i]], rel=1e-7)


def test_equal_models_are_rejected_as_often_as_the_level_says():
    """Of 300 pairs 5 % have p ≤ 0.05, to within three standard errors of the count."""
    rng, rejected, trials = np.random.default_rng(2), 0, 300
    x = rng.integers(20, 60, size=(trials, 20))
    shared = rng.gamma(9, 1 / 3, size=(trials, 20))
    a, b = (x * (shared + 0.1 * rng.normal(size=x.shape)) for _ in range(2))
    for row in range(trials):
        result = compare(CrossEntropy(), packed(a[row], x[row]), packed(b[row], x[row]), num_resamples=199)
        rejected += result.p_value <= 0.05
    assert 0.013 <= rejected / trials <= 0.087


def test_perplexities_are_compared_by_their_ratio():
    """A few hopeless documents dominate the interval of each perplexity, but not that of their ratio."""
    rng = np.random.default_rng(6)
    x = rng.integers(20, 400, size=60)
    level = rng.gamma(2, 2, size=60)
    level[:3] += 25
    a, b = packed(x * level, x), packed(x * (level - 0.05 + 0.08 * rng.normal(size=60)), x)
    interval = delta_interval(Perplexity(), a)
    assert interval.standard_error > interval.value / 2
    assert 0 < interval.low < interval.value < interval.high
    result = compare(Perplexity(), a, b, num_resamples=9999)
    assert result.p_value < 0.01
    assert result.high < 0
    assert result.better == "B"
    assert result.low < result.difference < result.high
    nats = compare(CrossEntropy(), a, b, num_resamples=9999)
    assert result.standard_error == pytest.approx(nats.standard_error * (1 + result.difference), rel=1e-9)
    assert (result.shown(-0.0123456), nats.shown(-0.0123456)) == ("-1.23 %", "-0.0123")
    assert (result.p_value, result.documents_needed) == (nats.p_value, nats.documents_needed)


def test_a_verdict_needs_both_the_interval_and_the_p_value(documents):
    y, x = documents
    few = packed(y[:5], x[:5]), packed(y[:5] - 0.1 * x[:5], x[:5])
    result = compare(CrossEntropy(), *few, num_resamples=99)
    assert result.high < 0
    assert result.p_value == 2 / 2**5  # five documents can't show more
    assert (result.favoured, result.better) == ("B", None)
    assert replace(result, p_holm=0.05).better == "B"
    wide = replace(result, p_holm=0.01, high=0.1)
    assert (wide.better, wide.significant) == (None, False)


def test_empty_documents_are_not_compared(documents):
    states = packed(*documents)
    empty = torch.zeros(3, *states.shape[1:], dtype=torch.int64)
    empty[:, 1, 2] = 7  # ignored rows
    more = torch.cat([empty[:1], states, empty[1:]])
    metric = CrossEntropy()
    assert compare(metric, more, more * 2, num_resamples=99) == compare(metric, states, states * 2, num_resamples=99)


def test_an_infinite_document_gives_no_verdict(documents):
    states = packed(*documents)
    infinite = states.clone()
    infinite[0, -2, 5] = 1
    result = compare(CrossEntropy(), states, infinite)
    assert np.isnan(result.p_value)
    assert result.better is None


def test_pairing_finds_a_small_difference_that_unpaired_runs_hide(documents):
    y, x = documents
    better = y - 0.02 * x + 0.001 * np.sin(np.arange(40)) * x
    a, b = packed(y, x), packed(better, x)
    result = compare(CrossEntropy(), a, b, num_resamples=999)
    assert result.better == "B"
    assert result.high < 0
    assert result.p_value <= 0.002
    assert result.documents_needed == 6  # fewer can't show p ≤ 0.05
    assert result.difference == pytest.approx((better.sum() - y.sum()) / x.sum())
    assert result.standard_error < standard_error(CrossEntropy(), a) / 100
    back = compare(CrossEntropy(), b, a, num_resamples=999)
    assert back.better == "A"
    assert back.difference == -result.difference


def test_documents_needed_give_80_percent_power():
    """With that many documents about 80 % of comparisons find the difference."""
    rng = np.random.default_rng(4)
    ones = np.ones(400, dtype=int)
    a, b = (rng.normal(3 + shift, 0.5, size=400) for shift in (0, 0.1))
    result = compare(CrossEntropy(), packed(a, ones), packed(b, ones), num_resamples=9)
    spread = result.standard_error * np.sqrt(400)
    draws = rng.normal(result.difference, spread, size=(1000, int(result.documents_needed)))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert 0.75 < found.mean() < 0.85


def test_different_documents_are_refused(documents):
    y, x = documents
    with pytest.raises(ComparisonError, match="the same documents in both runs, at least two of them; got 40 and 39"):
        compare(CrossEntropy(), packed(y, x), packed(y[1:], x[1:]))
    with pytest.raises(ComparisonError, match="1 in both, 1 only in A, 1 only in B"):
        same_documents(["a", "b"], ["b", "c"])
    same_documents(["a", "b"], ["b", "a"])


def test_a_quantile_is_refused(documents):
    states = packed(*documents)
    with pytest.raises(ComparisonError, match="kl_divergence_quantile is not a differentiable function of its sums"):
        compare(get_metric("kl_divergence_quantile", quantile=0.5), states, states)


def test_identical_runs_do_not_differ(documents):
    states = packed(*documents)
    result = compare(get_metric("perplexity"), states, states, num_resamples=99)
    assert (result.difference, result.p_value, result.better) == (0.0, 1.0, None)
    assert result.to_json()["documents_needed"] is None
