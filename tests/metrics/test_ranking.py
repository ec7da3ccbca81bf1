"""Ranks of the target, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch.nn import functional as F

from xent_metrics import (
    TokenAccuracy,
    get_metric,
)
from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics import (
    MeanReciprocalRank,
    TopKAccuracy,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


class TestRanks:
    def test_top_k_is_scikit_learns(self):
        logits, target = torch.randn(200, 9), torch.randint(9, (200,))
        for k in (1, 2, 3, 8):
            want = sklearn.metrics.top_k_accuracy_score(target.numpy(), logits.numpy(), k=k, labels=np.arange(9))
            assert value(TopKAccuracy(k=k), logits, target).item() == pytest.approx(want, rel=1e-14)
        assert value(TopKAccuracy(k=9), logits, target) == 1

    def test_the_mean_reciprocal_rank_is_scikit_learns_ranking_precision_of_one_relevant_class(self):
        logits, target = torch.randn(200, 9), torch.randint(9, (200,))
        relevant = F.one_hot(target, 9).numpy()
        want = sklearn.metrics.label_ranking_average_precision_score(relevant, logits.double().numpy())
        assert value(MeanReciprocalRank(), logits, target).item() == pytest.approx(want, rel=1e-14)

    def test_ties_go_to_the_lower_id_as_in_a_stable_sort(self):
        logits = torch.randint(3, (300, 12)).to(torch.bfloat16)
        target = torch.randint(12, (300,))
        order = logits.float().sort(dim=-1, descending=True, stable=True).indices
        rank = 1 + (order == target[:, None]).int().argmax(-1)
        for k in (1, 4, 11):
            assert value(TopKAccuracy(k=k), logits, target) == (rank <= k).double().mean()
        torch.testing.assert_close(value(MeanReciprocalRank(), logits, target), (1 / rank.double()).mean())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_top_1_is_the_accuracy_also_where_log_probabilities_tie(self, dtype):
        """Logits that differ by less than is left of them beside the normaliser; rows with nan and infinities."""
        logits = torch.randn(400, 6, dtype=torch.float64).mul(1e-9).to(dtype)
        logits[:100] = torch.randn(100, 6).to(dtype)
        logits[::7, 2], logits[::11, 4], logits[::13, 1] = math.nan, math.inf, -math.inf
        target = torch.randint(6, (400,))
        metric = TopKAccuracy(k=1)
        scores = metric.score(logits, target)
        of_finite = ~scores.nll.isnan()
        assert torch.equal(metric.per_token(scores)[of_finite], scores.correct[of_finite])
        accuracy = TokenAccuracy()
        for each in (metric, accuracy):
            each.update(scores)
        assert metric.compute(nan_policy="omit") == accuracy.compute(nan_policy="omit")

    @pytest.mark.parametrize("k", [0, -1, 2.0, True, None, 10**30])
    def test_k_is_a_whole_number(self, k):
        with pytest.raises(MetricOptionError, match=r"top_k_accuracy: k is a whole number from 1 to 2\^31; got"):
            get_metric("top_k_accuracy", k=k)
