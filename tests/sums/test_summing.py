"""A metric's sums of scores: taken once, found again by their owner alone, and shared where they are equal."""

from __future__ import annotations

import pickle

import pytest
import torch

from xent_metrics import CrossEntropy, RatioMetric, get_metric, score_tokens
from xent_metrics.errors import MetricOptionError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.layout import COUNTS
from xent_metrics.sums.shared_sums import own_keys


class Mean(RatioMetric):
    name = "mean"

    def per_token(self, scores):
        self.asked = getattr(self, "asked", 0) + 1
        return scores.nll


@pytest.fixture
def scores(batch):
    return score_tokens(*batch)


def test_a_metrics_own_sums_are_taken_once_of_the_same_scores(scores):
    metric = Mean()
    asked = metric.asked  # for its layout
    first = metric.exact_sums(scores)
    assert torch.equal(metric.exact_sums(scores), first)
    assert metric.asked == asked + 1


def test_two_objects_of_one_metric_have_sums_of_their_own(scores):
    first, second = Mean(), Mean()
    first.exact_sums(scores)
    before = len(scores.memo)
    assert torch.equal(second.exact_sums(scores), first.exact_sums(scores))
    assert len(scores.memo) == before + 1  # its numerator; the denominator is shared


def test_an_unpickled_metric_does_not_find_a_strangers_sums(scores):
    """Keys are numbered in each process: what another process wrote must not be looked up here."""
    stored = pickle.dumps(Mean())
    keys = own_keys(["mean(ignore_index=-100).numerator"])
    scores.memo.update(dict.fromkeys(keys.values(), torch.full((1, 8), 7)))
    found = pickle.loads(stored)
    assert torch.equal(found.exact_sums(scores), Mean().exact_sums(score_tokens_like(scores)))


def score_tokens_like(scores):
    return scores.map(torch.clone)


def test_cross_entropy_and_perplexity_share_both_their_sums(scores):
    CrossEntropy().exact_sums(scores)
    before = set(scores.memo)
    get_metric("perplexity").exact_sums(scores)
    assert set(scores.memo) == before


def test_a_metric_that_cannot_take_no_rows_says_so():
    class NeedsRows(RatioMetric):
        name = "needs_rows"

        def per_token(self, scores):
            return scores.nll / scores.nll.max()

    with pytest.raises(
        MetricOptionError, match="needs_rows: its sums were asked for with scores that have no rows, and"
    ):
        NeedsRows()


def test_packing_undoes_unpacking_but_for_the_counts(scores):
    metric = get_metric("expected_calibration_error", num_bins=4)
    state = metric.exact_sums(scores)
    packed = metric.pack(metric.unpack(exact_sum.to_float(state)))
    assert metric.value_of(packed) == metric.value_of(state)
    assert torch.equal(packed[len(COUNTS) :], state[len(COUNTS) :])
    assert not packed[: len(COUNTS)].any()
