"""The leave-one-out values behind intervals, against recomputing them, and resamples evaluated all at once or one by one."""

from __future__ import annotations

import pytest
import torch
from support.corpora import of_ratio, packed

from xent_metrics import CrossEntropy, Perplexity, RatioMetric
from xent_metrics.analysis import bootstrap, compare
from xent_metrics.analysis.jackknife import influence, leave_one_out
from xent_metrics.sums.exact_sum import to_float


def test_leave_one_out_values_and_influence_are_those_of_the_ratio(documents):
    y, x = documents
    sums = to_float(packed(y, x))
    ratio, without, weights = of_ratio(y[None], x[None])
    assert leave_one_out(CrossEntropy(), sums).numpy() == pytest.approx(without[0], rel=1e-12)
    assert influence(CrossEntropy(), sums).numpy() == pytest.approx(weights[0], rel=1e-12)
    assert leave_one_out(Perplexity(), sums).numpy() == pytest.approx(without[0], rel=1e-12)  # of the logarithm
    assert ratio[0] == pytest.approx(y.sum() / x.sum())


class Watched(RatioMetric):
    """Cross entropy that counts its evaluations; with `looks`, it branches on its value, which rules out vmap."""

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


def test_resamples_are_evaluated_at_once_if_the_metric_allows_it(documents):
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
