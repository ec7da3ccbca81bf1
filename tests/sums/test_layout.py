"""The layout of a metric's state, and what can't be laid out."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import CrossEntropy, RatioMetric, get_metric
from xent_metrics.errors import MetricOptionError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.layout import StateLayout


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


def test_packing_is_undone_for_documents_of_any_shape():
    layout = StateLayout(bins={"nats": None, "bins": 3}, values_per_row={"nats": 1, "bins": 1})
    named = {"nats": torch.rand(2, 5), "bins": torch.rand(2, 5, 3)}
    packed = layout.pack(named)
    assert packed.shape == (2, 5, layout.size, exact_sum.ROW)
    for place in [(0, 0), (1, 4)]:
        unpacked = layout.unpack(exact_sum.to_float(packed[place]))
        assert all(unpacked[name].tolist() == named[name][place].tolist() for name in named)


def test_counts_of_more_than_32_bits_are_whole():
    layout = StateLayout(bins={"nats": None}, values_per_row={"nats": 1})
    state = torch.zeros(layout.size, exact_sum.ROW, dtype=torch.int64)
    state[0, 2:4] = torch.tensor([5, 3])
    assert layout.counts(state)["counted"] == 3 * 2**32 + 5
