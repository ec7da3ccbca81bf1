"""The permutation test against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from support.corpora import packed

from xent_metrics import CrossEntropy
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.sums.exact_sum import to_float


def p_value(a, b, x, **options):
    """Of nats `a` and `b` over the same `x` tokens per document."""
    return permutation_p_value(CrossEntropy(), to_float(packed(a, x)), to_float(packed(b, x)), **options)


def test_few_documents_try_every_swap_as_scipy_does():
    rng = np.random.default_rng(3)
    a, b = rng.normal(3, 1, size=9), rng.normal(3.6, 1, size=9)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: y.mean(axis) - x.mean(axis), permutation_type="samples", vectorized=True
    )
    assert p_value(a, b, np.ones(9, dtype=int)) == pytest.approx(theirs.pvalue)  # 2^9 ≤ 9,999


def test_random_swaps_give_scipys_p_value():
    rng = np.random.default_rng(8)
    x = rng.integers(5, 60, size=40)
    a = x * rng.gamma(9, 1 / 3, size=40)
    b = a + x * (0.1 + 0.3 * rng.normal(size=40))
    ours = p_value(a, b, x, num_resamples=9999)

    def difference(first, second, axis):
        totals = [np.take(sums, first, axis=0).sum(axis=axis) for sums in (nats, tokens)]
        others = [np.take(sums, second, axis=0).sum(axis=axis) for sums in (nats, tokens)]
        return others[0] / others[1] - totals[0] / totals[1]

    nats, tokens = np.concatenate([a, b]), np.concatenate([x, x])
    theirs = stats.permutation_test(
        (np.arange(40), np.arange(40) + 40), difference, permutation_type="samples", vectorized=True, rng=1
    )
    assert 0.01 < ours < 0.3
    assert ours == pytest.approx(theirs.pvalue, abs=4 * np.sqrt(2 * 0.3 * 0.7 / 9999))


def test_sums_that_are_not_finite_have_no_p_value(documents):
    y, x = documents
    sums = to_float(packed(y, x))
    infinite = sums.clone()
    infinite[0, -2] = np.inf
    assert np.isnan(permutation_p_value(CrossEntropy(), sums, infinite))
