"""The terms of a metric's sums: plain, or by bin."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.metric_kinds import used

from xent_metrics import TokenMetric, score_tokens
from xent_metrics.sums.exact_sum import to_float
from xent_metrics.sums.terms import Binned


class ByTarget(TokenMetric):
    """The mean nll, and its sums by target; the last bin stays empty."""

    name = "by_target"

    def sums(self, scores):
        nll, ones = scores.weighted(scores.nll), scores.weighted(torch.ones_like(scores.nll))
        bins = scores.target.clamp(0)
        return {"nats": nll, "nats by target": Binned(nll, bins, 14), "tokens": ones}

    def value(self, sums):
        return sums["nats"] / sums["tokens"]


def test_binned_terms_of_any_shape_are_summed_by_bin(batch):
    metric = used(ByTarget(), *batch)
    found = metric.unpack(to_float(metric.state))
    scores = score_tokens(*batch)
    counted = scores.target[scores.counted]
    want = torch.zeros(14, dtype=torch.float64).index_add(0, counted, scores.nll[scores.counted].double())
    torch.testing.assert_close(found["nats by target"], want, rtol=1e-15, atol=0)
    assert found["nats by target"][13] == 0
    assert found["tokens"] == 21
    torch.testing.assert_close(found["nats"], want.sum(), rtol=1e-15, atol=0)


def test_binned_terms_are_what_they_were_made_of():
    binned = Binned(torch.ones(3), torch.zeros(3, dtype=torch.long), 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        binned.num_bins = 3
