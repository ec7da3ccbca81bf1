"""Shared sums: equal if they are of one class with equal fields, whatever their names."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch

from xent_metrics import NATS, TOKENS, CrossEntropy, Perplexity, SharedSum, TokenMetric, score_tokens
from xent_metrics.errors import MetricOptionError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.shared_sums import check_shared_sum, shared_key


@dataclass(frozen=True)
class Scaled(SharedSum):
    factor: float = 1.0

    @property
    def name(self):
        return "nats"  # as cross entropy's, whatever the factor

    def terms(self, scores):
        return scores.weighted(self.factor * scores.nll)


class ScaledCrossEntropy(TokenMetric):
    name = "scaled_cross_entropy"

    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def shared_sums(self):
        return Scaled(self.factor), TOKENS

    def value(self, sums):
        return sums["nats"] / sums["tokens"]


def test_equal_fields_of_one_class_are_one_sum():
    assert Scaled(2.0) == Scaled(2.0)
    assert Scaled(2.0) != Scaled(3.0)
    assert Scaled(1.0) != NATS
    assert copy.deepcopy(NATS) == pickle.loads(pickle.dumps(NATS)) == NATS


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric]
)
def test_shared_sums_with_one_name_and_two_meanings_are_two_sums(batch, way):
    made = [ScaledCrossEntropy(3.0), CrossEntropy(), ScaledCrossEntropy(2.0), Perplexity(), ScaledCrossEntropy(3.0)]
    scores = score_tokens(*batch)
    values = []
    for metric in map(way, made):
        metric.update(scores)
        values.append(metric.compute())
    nats = values[1]
    torch.testing.assert_close(torch.stack(values), torch.stack([3 * nats, nats, 2 * nats, nats.exp(), 3 * nats]))
    taken = [key for key in scores.memo if key.startswith("nats ")]
    assert len(taken) == 3  # of nll, of 2 nll and of 3 nll


def test_a_name_is_either_shared_or_own():
    class Both(TokenMetric):
        name = "both"

        def shared_sums(self):
            return (TOKENS,)

        def sums(self, scores):
            return {"tokens": scores.weighted(scores.nll)}

        def value(self, sums):
            return sums["tokens"]

    with pytest.raises(MetricOptionError, match="both: the sum name 'tokens' is that of a shared sum; choose another"):
        Both()


@dataclass(frozen=True)
class Turned(Scaled):
    """Fields that are equal, but not the same."""

    def terms(self, scores):
        return scores.weighted(scores.nll * math.atan2(self.factor, -1.0))


def test_fields_are_the_same_only_if_they_read_the_same(batch):
    scores = score_tokens(*batch)
    assert Turned(0.0) == Turned(-0.0)
    assert len({shared_key(Turned(factor)) for factor in (0.0, -0.0, 1, 1.0, True)}) == 5
    values = [exact_sum.to_float(exact_sum.exact_sum(Turned(factor).terms(scores))) for factor in (0.0, -0.0)]
    assert values[0] == -values[1] != 0


class Undecorated(Scaled):
    def __init__(self, factor, more):
        super().__init__(factor)
        object.__setattr__(self, "more", more)  # which no comparison looks at


class NoDataclass(SharedSum):
    name = "none"

    def terms(self, scores):
        return scores.nll


@dataclass
class NotFrozen(NoDataclass):
    factor: float = 1.0


@pytest.mark.parametrize("shared", [Undecorated(1.0, 2.0), NoDataclass(), NotFrozen()])
def test_a_shared_sum_is_a_frozen_dataclass(shared):
    with pytest.raises(MetricOptionError, match=f"the shared sum {type(shared).__name__} is not a frozen dataclass"):
        check_shared_sum(shared)


def test_fields_that_cannot_be_compared_are_named():
    with pytest.raises(MetricOptionError, match=r"the fields of Scaled\(factor=\[1\]\) can't be compared: unhashable"):
        check_shared_sum(Scaled([1]))
