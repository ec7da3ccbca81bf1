"""Corrected p values: by hand, against scipy, and by the share of false alarms among families without a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from support.corpora import packed

from xent_metrics import CrossEntropy, Perplexity
from xent_metrics.analysis import benjamini_hochberg, compare, corrected, holm
from xent_metrics.analysis.multiplicity import resamples_needed
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.sums.exact_sum import to_float


def test_holms_p_values_are_those_of_the_stepwise_rule():
    """Reject p_(1) … p_(k) while p_(i) ≤ α/(m − i + 1), at any α."""
    p = np.random.default_rng(0).beta(0.3, 1, size=30)
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2):
        ordered, rejected = np.sort(p), 0
        while rejected < 30 and ordered[rejected] <= level / (30 - rejected):
            rejected += 1
        assert (np.array(adjusted) <= level).sum() == rejected
        assert {i for i in range(30) if adjusted[i] <= level} == set(np.argsort(p)[:rejected])


def test_known_values():
    p = [0.01, 0.02, 0.03, 0.04, 0.05]  # R: p.adjust(p, "holm"), p.adjust(p, "BH")
    assert holm(p) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert benjamini_hochberg(p) == pytest.approx([0.05] * 5)


def test_nan_is_not_part_of_the_family():
    assert holm([0.02, math.nan, 0.01]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert benjamini_hochberg([0.02, math.nan, 0.01]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert holm([]) == benjamini_hochberg([]) == []
    assert np.isnan(holm([math.nan])).all()
    assert np.isnan(benjamini_hochberg([math.nan])).all()


def pairs(count, gain, rng):
    """Comparisons of cross entropy and perplexity over 12 documents; B is better by `gain` standard deviations."""
    for _ in range(count):
        a, ones = 3 + rng.normal(size=12), np.ones(12, dtype=int)
        b = a + rng.normal(size=12) - gain
        for metric in (CrossEntropy(), Perplexity()):
            yield compare(metric, packed(a, ones), packed(b, ones), num_resamples=199)


def test_a_family_is_corrected_and_its_verdicts_with_it():
    found = [*pairs(8, 0.7, np.random.default_rng(1))]
    together = corrected(found)
    assert corrected(together) == together
    p = [each.p_value for each in found]
    assert [each.p_holm for each in together] == holm(p)
    assert [each.p_bh for each in together] == stats.false_discovery_control(p).tolist()
    assert sum(each.better == "B" for each in found) > sum(each.better == "B" for each in together)
    for alone, each in zip(found, together, strict=True):
        assert each.documents_needed >= alone.documents_needed
        assert each.documents_missing == (0 if each.significant else max(0, each.documents_needed - 12))
    assert [each.p_holm for each in corrected(found[:1])] == p[:1]


def test_documents_needed_of_a_ratio_are_those_of_its_logarithm():
    """Cross entropy and perplexity of one pair are one test."""
    for nats, ratio in zip(*[iter(corrected([*pairs(3, 0.3, np.random.default_rng(4))]))] * 2, strict=True):
        assert abs(nats.documents_needed - ratio.documents_needed) <= nats.documents_needed / 2


def test_families_without_a_difference_raise_few_false_alarms():
    """100 families of 8 tests that share run A; without a correction every fourth has an alarm. See benchmarks/alarms.py."""
    rng, families, ones, metric = np.random.default_rng(2), 100, np.ones(12, dtype=int), CrossEntropy()
    alarms = []
    for _ in range(families):
        a, *others = (to_float(packed(3 + rng.normal(size=12), ones)) for _ in range(9))
        alarms.append([permutation_p_value(metric, a, b, num_resamples=199) for b in others])
    raw = np.mean([min(family) <= 0.05 for family in alarms])
    by_holm, by_bh = (
        np.mean([min(adjust(family)) <= 0.05 for family in alarms]) for adjust in (holm, benjamini_hochberg)
    )
    assert raw > 0.15
    assert by_holm <= by_bh <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)


def test_more_tests_need_more_resamples():
    for tests in (1, 7, 500):
        assert tests / (resamples_needed(tests) + 1) <= 0.05 < tests / resamples_needed(tests)
