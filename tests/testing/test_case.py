"""The made-up data suit the metric, and a case gives it out again and again."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import BitsPerByte, CrossEntropy, RatioMetric, get_metric
from xent_metrics.testing.case import Case, made_up_batch, message, own_scores, same


def test_the_logits_have_the_classes_of_the_metrics_table():
    logits, target = made_up_batch(BitsPerByte(token_bytes=torch.arange(7)))
    assert logits.shape == (5, 8, 7)
    assert (target == -100).any()
    assert int(target.max()) < 7


@pytest.mark.parametrize("from_logits", [True, False])
def test_binary_metrics_get_one_number_per_row(from_logits):
    logits, target = made_up_batch(get_metric("binary_cross_entropy", from_logits=from_logits))
    assert logits.shape == target.shape == (5, 8)
    assert from_logits or bool(((logits > 0) & (logits < 1)).all())


def test_a_case_gives_new_metrics_and_scores_without_sums():
    metric = CrossEntropy()
    metric.update(torch.zeros(1, 2), torch.tensor([0]))
    case = Case.of(metric)
    case.used()
    assert not case.metric.state.any()
    assert not case.scores.memo
    assert metric.state.any()
    again = Case.of(metric)
    assert torch.equal(again.logits, case.logits)
    assert not torch.equal(Case.of(metric, seed=1).logits, case.logits)


def test_the_scores_have_what_hosts_add():
    scores = own_scores(CrossEntropy(), torch.zeros(1, 6, 3), torch.zeros(1, 6, dtype=torch.long))
    assert scores.num_bytes.tolist() == [[0, 1, 2, 3, 4, 0]]
    assert scores.weight.tolist() == [[0.25, 0.5, 0.75, 1, 0.25, 0.5]]


class TakesNothing(RatioMetric):
    name = "takes_nothing"

    def score(self, *batch, **options):
        raise RuntimeError("nothing")

    def per_token(self, scores):
        return scores.nll


def test_a_metric_that_takes_no_logits_is_named():
    with pytest.raises(
        AssertionError, match="takes_nothing can't take made-up logits and targets: RuntimeError: nothing"
    ):
        Case.of(TakesNothing())


def test_same_means_the_same_bits():
    same(torch.tensor(0.1), torch.tensor(0.1), "two")
    with pytest.raises(AssertionError, match="two differ"):
        same(torch.tensor(0.1), torch.tensor(0.1000001), "two")
    assert message(ValueError("x")) == "ValueError: x"
