"""The layout of a metric's state, and what can't be laid out."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import CrossEntropy, RatioMetric, get_metric
from xent_metrics.errors import MetricOptionError


def test_counts_come_with_the_value(batch):
    metric = CrossEntropy()
    logits, target = batch[0].clone(), batch[1]
    logits[1, 2, 0], logits[2, 0, :] = float("nan"), -float("inf")
    logits[1, 5, target[1, 5]] = -float("inf")
    metric.update(logits, target)
    assert metric.counts() == {"counted": 21, "ignored": 3, "invalid_targets": 0, "nan": 2, "infinite": 1}
    with pytest.warns(UserWarning, match="2 of 21 rows gave nan"):
        assert metric.compute().isnan()
    spread = get_metric("calibration_weighted_cross_entropy")
    spread.update(torch.randn(6, 4), torch.tensor([0, 1, 9, 9, 9, 9]))  # in several bins
    assert (spread.counts()["nan"], spread.counts()["invalid_targets"]) == (4, 4)


@pytest.mark.parametrize("name", ["optimal_temperature", "full_calibration_error", "classwise_calibration_error"])
def test_a_row_of_several_terms_is_one_row_of_nan(name):
    metric = get_metric(name)
    logits = torch.randn(10, 2)
    logits[3], logits[4, 1] = float("nan"), float("nan")
    metric.update(logits, torch.randint(2, (10,)))
    assert metric.counts()["nan"] == 2
    with pytest.warns(UserWarning, match="2 of 10 rows gave nan"):
        metric.compute()


def test_a_metric_that_cannot_be_laid_out_says_so():
    class Nameless(RatioMetric):
        def per_token(self, scores):
            return scores.nll

    class Reserved(Nameless):
        name = "reserved"

        def sum_names(self):
            return "counted", "tokens"

    with pytest.raises(MetricOptionError, match='Nameless has no name; set the class attribute `name = "…"`'):
        Nameless()
    with pytest.raises(MetricOptionError, match="the sum name 'counted' is taken by the base"):
        Reserved()
    with pytest.raises(MetricOptionError, match="compute_with_cache=True"):
        CrossEntropy(compute_with_cache=True)
