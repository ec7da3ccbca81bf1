"""Entropy, Brier score and z-loss, against scipy, scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from xent_metrics import (
    TokenMetricCollection,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import MissingScoreError
from xent_metrics.metrics import (
    BrierScore,
    PredictionEntropy,
    ZLoss,
)

FAMILY = ["top_k_accuracy", "mean_reciprocal_rank", "prediction_entropy", "brier_score", "z_loss"]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


class TestDistributions:
    def test_entropy_is_scipys(self):
        logits = 3 * torch.randn(50, 20, dtype=torch.float64)
        want = scipy.stats.entropy(logits.softmax(-1).numpy(), axis=1).mean()
        assert value(PredictionEntropy(), logits, torch.zeros(50).long()).item() == pytest.approx(want, rel=1e-12)

    def test_brier_is_scikit_learns_whose_binary_one_is_half(self):
        logits, target = 2 * torch.randn(80, 5, dtype=torch.float64), torch.randint(5, (80,))
        want = sklearn.metrics.brier_score_loss(target.numpy(), logits.softmax(-1).numpy(), labels=np.arange(5))
        assert value(BrierScore(), logits, target).item() == pytest.approx(want, rel=1e-12)
        logits, target = logits[:, :2], target % 2
        half = sklearn.metrics.brier_score_loss(target.numpy(), logits.softmax(-1).numpy()[:, 1])
        assert value(BrierScore(), logits, target).item() == pytest.approx(2 * half, rel=1e-12)

    def test_values_by_hand(self):
        certain, wrong = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([1])
        assert value(BrierScore(), certain, wrong) == 2
        assert value(BrierScore(), certain, torch.tensor([0])) == 0
        assert value(BrierScore(), torch.zeros(1, 4), wrong).item() == 0.75**2 + 3 / 16
        assert value(PredictionEntropy(), certain, wrong) == 0
        assert value(ZLoss(), certain, wrong) == 1e8
        normalised = torch.randn(5, 7, dtype=torch.float64).log_softmax(-1)
        assert value(ZLoss(), normalised, torch.arange(5)) < 1e-28
        assert value(ZLoss(), normalised + 3, torch.arange(5)).item() == pytest.approx(9, rel=1e-12)

    def test_classes_that_are_masked_out_have_no_share(self):
        logits = torch.tensor([[0.0, 0.0, -math.inf]])
        assert value(PredictionEntropy(), logits, torch.tensor([0])).item() == pytest.approx(math.log(2))
        assert value(BrierScore(), logits, torch.tensor([0])).item() == pytest.approx(0.5)
        assert value(BrierScore(), logits, torch.tensor([2])).item() == pytest.approx(1.5)

    @pytest.mark.parametrize("metric", [PredictionEntropy(), BrierScore(), ZLoss()], ids=lambda metric: metric.name)
    def test_nan_is_counted(self, metric):
        metric.update(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), torch.tensor([0, 0]))
        assert metric.counts()["nan"] == 1
        with pytest.warns(UserWarning, match="1 of 2 rows gave nan"):
            assert metric.compute().isnan()

    def test_scores_without_the_extra_scores_one_say_how_to_get_it(self):
        scores = score_tokens(torch.zeros(2, 3), torch.tensor([0, 1]))
        with pytest.raises(
            MissingScoreError, match=r"z_loss needs `squared_log_normaliser`.*extra_scores=metric\.extra_scores"
        ):
            ZLoss().update(scores)
        metric = ZLoss()
        metric.update(score_tokens(torch.zeros(2, 3), torch.tensor([0, 1]), extra_scores=metric.extra_scores()))
        assert metric.compute().item() == pytest.approx(math.log(3) ** 2)

    def test_a_collection_takes_them_all_in_one_pass(self, batch):
        names = ["cross_entropy", *FAMILY]
        together = TokenMetricCollection(names)
        together.update(*batch)
        assert {name: value(get_metric(name), *batch) for name in names} == together.compute()
