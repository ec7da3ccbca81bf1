"""Sums are taken once of the same scores, alike ones in one pass, and each by its owner's key."""

from __future__ import annotations

import pickle

import pytest
import torch

from xent_metrics import CrossEntropy, RatioMetric, get_metric, score_tokens
from xent_metrics.sums import exact_sum
from xent_metrics.sums.shared_sums import own_keys, remember, take_sums
from xent_metrics.sums.terms import Binned


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_sums_taken_together_are_those_taken_alone(scores, dtype):
    values = [(scores.nll * factor).to(dtype) for factor in (1, 2, 3)]
    bins = scores.counted.long()
    terms = {f"plain {i}": value for i, value in enumerate(values)}
    terms |= {f"binned {i}": Binned(value, bins, 2) for i, value in enumerate(values)}
    terms |= {"other bins": Binned(values[0], 1 - bins, 2), "two columns": torch.stack([values[0]] * 2, dim=-1)}
    take_sums(scores, terms)
    for key, term in terms.items():
        if isinstance(term, Binned):
            want = exact_sum.exact_sum_by_bin(term.values, term.bins, term.num_bins)
        else:
            want = exact_sum.exact_sum(term)[None]
        assert torch.equal(scores.memo[key], want), key


def test_what_is_remembered_is_made_once(scores):
    made = []
    for _ in range(2):
        found = remember(scores, f"{__name__}: ones", lambda: made.append(1) or torch.ones(3))
        assert found.sum() == 3
    assert made == [1]


def test_cross_entropy_and_perplexity_share_both_their_sums(scores):
    CrossEntropy().exact_sums(scores)
    before = set(scores.memo)
    get_metric("perplexity").exact_sums(scores)
    assert set(scores.memo) == before
