"""Intervals and comparisons against scipy and by simulation: a 95 % interval covers 93 to 97 %.

Coverage is counted over thousands of corpora with the formulas written out in NumPy (`ends`), and in each of the settings
the package's own intervals are seen to be these.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from xent_metrics import CrossEntropy, ExpectedCalibrationError, Perplexity, RatioMetric, TokenScores, get_metric
from xent_metrics.analysis import bootstrap, compare, delta_interval, same_documents
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.exact_sum import exact_sum_by_bin, to_float
from xent_metrics.wrappers.standard_error import standard_error


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


def test_the_standard_error_is_the_ratio_estimator(documents):
    y, x = documents
    ratio = y.sum() / x.sum()
    error = np.sqrt(40 / 39 * ((y - ratio * x) ** 2).sum()) / x.sum()
    interval = delta_interval(CrossEntropy(), packed(y, x))
    assert (interval.value, interval.standard_error) == pytest.approx((ratio, error), rel=1e-12)


def test_the_interval_of_equal_documents_is_students():
    """The mean of 40 equally long documents of nearly one level, where nothing is to be corrected."""
    y = 100 + np.random.default_rng(0).normal(size=40)
    interval = delta_interval(CrossEntropy(), packed(y, np.ones(40, dtype=int)), confidence_level=0.9)
    assert (interval.low, interval.high) == pytest.approx(
        stats.t.interval(0.9, 39, loc=y.mean(), scale=stats.sem(y)), rel=1e-7
    )


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_is_scipys_on_the_same_ratio(documents, method):
    """To the rounding of the sums: the same documents are drawn, at Hesterberg's level."""
    y, x = documents
    (tail,) = expanded_tail(of_ratio(y[None], x[None])[2])
    ours = bootstrap(CrossEntropy(), packed(y, x), method=method, num_resamples=500, seed=7)

    def ratio(y, x, axis):
        return y.sum(axis) / x.sum(axis)

    rng = np.random.default_rng(7)
    theirs = stats.bootstrap(
        (y, x.astype(float)), ratio, paired=True, method=method, n_resamples=500, confidence_level=1 - 2 * tail, rng=rng
    )
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-9)
    assert ours.low < ours.value < ours.high


def test_the_bootstraps_error_of_a_mean_is_known():
    y = np.random.default_rng(5).gamma(4, 0.5, size=50)
    ours = bootstrap(CrossEntropy(), packed(y, np.ones(50, dtype=int)), num_resamples=9999, method="percentile")
    assert ours.standard_error == pytest.approx(y.std() / np.sqrt(50), rel=0.02)


class Watched(RatioMetric):
    """Cross entropy that counts how often its value is taken, and may look at the number, which can't be done at once."""

    name = "watched"

    def __init__(self, looks: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.looks, self.calls = looks, 0

    def per_token(self, scores):
        return scores.nll

    def value(self, sums):
        self.calls += 1
        found = super().value(sums)
        return found * (1 if self.looks and float(found.detach()) < 0 else 2)


def test_resamples_are_taken_at_once_where_a_metric_allows(documents):
    y, x = documents
    both = {}
    for looks in (False, True):
        metric = Watched(looks)
        states = torch.zeros(40, *metric.state.shape, dtype=torch.int64)
        states[:, 3:] = packed(y, x)[:, -2:].flip(1)  # denominator, numerator
        metric.calls = 0
        found = bootstrap(metric, states, num_resamples=300), compare(metric, states, states * 2, num_resamples=300)
        both[looks] = found[0], found[1].p_value
        assert metric.calls > 600 if looks else metric.calls < 30
    assert both[True] == both[False]


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
    theirs = bootstrap(metric, torch.stack(states), num_resamples=4000, method="percentile").standard_error
    assert ours == pytest.approx(theirs, rel=0.05)


def test_few_documents_have_no_interval(documents):
    y, x = documents
    for method in (delta_interval, bootstrap):
        one = method(CrossEntropy(), packed(y[:1], x[:1]))
        assert one.value == pytest.approx(y[0] / x[0])
        assert np.isnan([one.standard_error, one.low, one.high]).all()
        assert np.isnan(method(CrossEntropy(), packed(y[:0], x[:0])).value)


def ends(value, leave_one_out, weights):
    """Jackknife intervals of many corpora: values ``(C,)``, those without each document, and its weight, ``(C, D)``."""
    size = leave_one_out.shape[1]
    error = np.sqrt((size - 1) * leave_one_out.var(axis=1))
    effective = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    half = stats.t.ppf(0.975, effective - 1) * error
    return value - half, value + half


def expanded_tail(weights):
    """What a 95 % interval of the bootstrap leaves on each side, ``(C,)``: Hesterberg (2015), of the effective documents."""
    effective = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    return stats.norm.sf(np.sqrt(effective / (effective - 1)) * stats.t.ppf(0.975, effective - 1))


def of_ratio(y, x):
    """The ratio of each corpus, its left-out ones, and weights; `y` nats and `x` tokens a document, ``(C, D)``."""
    nats, tokens = y.sum(axis=1, keepdims=True), x.sum(axis=1, keepdims=True)
    ratio = nats / tokens
    return ratio[:, 0], (nats - y) / (tokens - x), (np.abs(y) + ratio * x) / tokens


LENGTHS = {
    "alike": lambda rng, shape: rng.integers(20, 60, size=shape),
    "exponential": lambda rng, shape: 1 + rng.exponential(60, size=shape).astype(int),
    "lognormal": lambda rng, shape: 1 + (50 * rng.lognormal(size=shape)).astype(int),
}
settings = [(lengths, size) for lengths in LENGTHS for size in (10, 40, 100)]
CORPORA = 4000


def corpora(lengths, size):
    """Lengths and nats ``(C, D)``: each document has a mean of its own, 3 nats on average, and its tokens differ."""
    rng = np.random.default_rng(size)
    x = LENGTHS[lengths](rng, (CORPORA, size))
    return rng, x, x * rng.gamma(9, 1 / 3, size=x.shape) + rng.normal(size=x.shape) * np.sqrt(x)


@pytest.mark.parametrize(("lengths", "size"), settings)
def test_a_95_percent_interval_covers_93_to_97_percent(lengths, size):
    _, x, y = corpora(lengths, size)
    low, high = ends(*of_ratio(y, x))
    assert 0.93 <= ((low <= 3) & (high >= 3)).mean() <= 0.97
    for i in range(10):
        ours = delta_interval(CrossEntropy(), packed(y[i], x[i]))
        assert (ours.low, ours.high) == pytest.approx((low[i], high[i]), rel=1e-9)
        perplexity = delta_interval(Perplexity(), packed(y[i], x[i]))
        assert (perplexity.low, perplexity.high) == pytest.approx((np.exp(low[i]), np.exp(high[i])), rel=1e-9)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [20, 40, 100])
def test_so_does_that_of_the_bootstrap(lengths, size):
    """All corpora by the same draws, whose totals are one product."""
    (rng, x, y), resamples = corpora(lengths, size), 1999
    counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)
    drawn = np.sort((counts @ y.T) / (counts @ x.T), axis=0)  # (resamples, C)
    last = np.floor(expanded_tail(of_ratio(y, x)[2]) * (resamples - 1)).astype(int)
    low, high = (np.take_along_axis(drawn, at[None], axis=0)[0] for at in (last, resamples - 1 - last))
    assert 0.93 <= ((low <= 3) & (high >= 3)).mean() <= 0.97


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [20, 40, 100])
def test_so_does_that_of_a_paired_difference(lengths, size):
    """B is 0.2 nats worse on average, by an amount of its own in each document."""
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


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [40, 100])
def test_so_does_that_of_a_calibration_error(lengths, size):
    """Accuracy is confidence to a power, 2 on average, that each document has for itself."""
    rng, bins, corpora = np.random.default_rng(size), 5, 1500
    x = LENGTHS[lengths](rng, (corpora, size))
    document = np.repeat(np.arange(corpora * size), x.reshape(-1))

    def tokens(document, power):
        confidence = rng.random(len(document))
        return np.minimum((confidence * bins).astype(int), bins - 1), confidence, confidence ** (2 * power)

    place, confidence, accuracy = tokens(document, np.exp(0.3 * rng.normal(size=x.size))[document])
    correct = rng.random(len(document)) < accuracy
    n, c, f = (
        np.bincount(document * bins + place, w, minlength=x.size * bins).reshape(corpora, size, bins)
        for w in (np.ones(len(document)), correct, confidence)
    )
    of_all, gap = n.sum(axis=(1, 2)), (c - f).sum(axis=1)  # (C,), (C, bins)
    value = np.abs(gap).sum(axis=1) / of_all
    leave_one_out = np.abs(gap[:, None] - (c - f)).sum(axis=2) / (of_all[:, None] - n.sum(axis=2))
    low, high = ends(value, leave_one_out, (c + f).sum(axis=2) + value[:, None] * n.sum(axis=2))
    population = np.zeros(2_000_000, dtype=int)
    place, confidence, accuracy = tokens(population, np.exp(0.3 * rng.normal(size=len(population))))
    truth = np.abs(np.bincount(place, accuracy - confidence)).sum() / len(population)
    assert 0.93 <= ((low <= truth) & (high >= truth)).mean() <= 0.97
    metric = ExpectedCalibrationError(num_bins=bins)
    for i in range(5):
        sums = {"tokens": n[i], "correct": c[i], "confidence": f[i]}
        states = metric.pack({f"confidence_bins[{bins}].{k}": torch.from_numpy(v) for k, v in sums.items()})
        ours = delta_interval(metric, states)
        assert (ours.low, ours.high) == pytest.approx((low[i], high[i]), rel=1e-6)


def test_a_comparison_without_difference_rejects_as_often_as_it_says():
    """300 pairs: 5 % of p values are at most 0.05, to within three standard errors of the count."""
    rng, rejected, trials = np.random.default_rng(2), 0, 300
    x = rng.integers(20, 60, size=(trials, 20))
    shared = rng.gamma(9, 1 / 3, size=(trials, 20))
    a, b = (x * (shared + 0.1 * rng.normal(size=x.shape)) for _ in range(2))
    for row in range(trials):
        result = compare(CrossEntropy(), packed(a[row], x[row]), packed(b[row], x[row]), num_resamples=199)
        rejected += result.p_value <= 0.05
    assert 0.013 <= rejected / trials <= 0.087


def test_perplexity_has_an_interval_above_zero_and_a_verdict_that_agrees_with_p():
    """A few documents that a model can't read at all: an interval of the perplexity itself is of nothing but them."""
    rng = np.random.default_rng(6)
    x = rng.integers(20, 400, size=60)
    level = rng.gamma(2, 2, size=60)
    level[:3] += 25
    a, b = packed(x * level, x), packed(x * (level - 0.05 + 0.08 * rng.normal(size=60)), x)
    interval = delta_interval(Perplexity(), a)
    assert interval.standard_error > interval.value / 2
    assert 0 < interval.low < interval.value < interval.high
    result = compare(Perplexity(), a, b, num_resamples=999)
    assert result.p_value < 0.01
    assert result.high < 0
    assert result.better == "B"
    assert result.low < result.difference < result.high
    nats = compare(CrossEntropy(), a, b, num_resamples=999)
    assert result.standard_error == pytest.approx(nats.standard_error * (1 + result.difference), rel=1e-9)
    assert (result.shown(-0.0123456), nats.shown(-0.0123456)) == ("-1.23 %", "-0.0123")
    assert (result.p_value, result.documents_needed) == (nats.p_value, nats.documents_needed)


def test_a_verdict_takes_both_the_interval_and_the_p_value(documents):
    y, x = documents
    few = packed(y[:5], x[:5]), packed(y[:5] - 0.1 * x[:5], x[:5])
    result = compare(CrossEntropy(), *few, num_resamples=99)
    assert result.high < 0
    assert result.p_value == 2 / 2**5  # five documents can't show more
    assert result.better is None


def test_empty_documents_are_no_samples_anywhere(documents):
    states = packed(*documents)
    empty = torch.zeros(3, *states.shape[1:], dtype=torch.int64)
    empty[:, 1, 2] = 7  # ignored rows
    more = torch.cat([empty[:1], states, empty[1:]])
    metric = CrossEntropy()
    assert delta_interval(metric, more) == delta_interval(metric, states)
    assert bootstrap(metric, more, num_resamples=99) == bootstrap(metric, states, num_resamples=99)
    assert compare(metric, more, more * 2, num_resamples=99) == compare(metric, states, states * 2, num_resamples=99)


def test_an_infinite_document_has_no_interval(documents):
    states = packed(*documents)
    infinite = states.clone()
    infinite[0, -2, 5] = 1
    for method in (delta_interval, bootstrap):
        found = method(CrossEntropy(), infinite)
        assert found.value == np.inf
        assert np.isnan([found.low, found.high]).all()
    result = compare(CrossEntropy(), states, infinite)
    assert np.isnan(result.p_value)
    assert result.better is None


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


def test_drawn_swaps_give_scipys_p_value():
    rng = np.random.default_rng(8)
    x = rng.integers(5, 60, size=40)
    a = x * rng.gamma(9, 1 / 3, size=40)
    b = a + x * (0.1 + 0.3 * rng.normal(size=40))
    ours = compare(CrossEntropy(), packed(a, x), packed(b, x), num_resamples=9999)

    def difference(first, second, axis):
        totals = [np.take(sums, first, axis=0).sum(axis=axis) for sums in (nats, tokens)]
        others = [np.take(sums, second, axis=0).sum(axis=axis) for sums in (nats, tokens)]
        return others[0] / others[1] - totals[0] / totals[1]

    nats, tokens = np.concatenate([a, b]), np.concatenate([x, x])
    theirs = stats.permutation_test(
        (np.arange(40), np.arange(40) + 40), difference, permutation_type="samples", vectorized=True, rng=1
    )
    assert 0.01 < ours.p_value < 0.3
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=4 * np.sqrt(2 * 0.3 * 0.7 / 9999))


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
