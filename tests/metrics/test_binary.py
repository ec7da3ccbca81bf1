"""Binary cross entropy, against torch and scikit-learn."""

from __future__ import annotations

import math

import pytest
import sklearn.metrics
import torch
from support import reference_family
from torch.nn import functional as F

from xent_metrics import (
    CrossEntropy,
    ExpectedCalibrationError,
    TokenAccuracy,
    TokenMetricCollection,
    score_tokens,
)
from xent_metrics.errors import InvalidInputError, InvalidTargetError, MetricOptionError
from xent_metrics.metrics import (
    BinaryCrossEntropy,
    BrierScore,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


class TestBinary:
    forecasts = 4 * torch.randn(60, generator=torch.Generator().manual_seed(2))
    target = torch.randint(2, (60,), generator=torch.Generator().manual_seed(3))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("from_logits", [True, False])
    def test_it_is_that_of_fifty_digits(self, from_logits, dtype):
        forecasts = (self.forecasts if from_logits else self.forecasts.sigmoid()).to(dtype)
        target = self.target.clone()
        target[::9] = -100
        if not from_logits and dtype in (torch.float16, torch.bfloat16):
            forecasts = forecasts.clamp(0.01, 0.99)  # which round to 0 or 1
        want = reference_family.binary_cross_entropy(forecasts.tolist(), target.tolist(), from_logits)
        got = value(BinaryCrossEntropy(from_logits=from_logits), forecasts, target)
        assert got.item() == pytest.approx(float(want), rel=1e-12)

    def test_it_is_torchs_and_scikit_learns(self):
        forecasts, target = self.forecasts.double().reshape(4, 15), self.target.reshape(4, 15)
        prob = forecasts.sigmoid()
        want = F.binary_cross_entropy_with_logits(forecasts, target.double())
        torch.testing.assert_close(value(BinaryCrossEntropy(), forecasts, target), want, rtol=1e-12, atol=0)
        want = F.binary_cross_entropy(prob, target.double())
        torch.testing.assert_close(value(BinaryCrossEntropy(from_logits=False), prob, target), want, rtol=1e-12, atol=0)
        want = sklearn.metrics.log_loss(target.flatten(), prob.flatten())
        assert value(BinaryCrossEntropy(), forecasts, target == 1).item() == pytest.approx(want, rel=1e-12)

    def test_soft_targets_are_torchs(self):
        forecasts, target = self.forecasts.double(), torch.rand(60, dtype=torch.float64)
        want = F.binary_cross_entropy_with_logits(forecasts, target)
        torch.testing.assert_close(value(BinaryCrossEntropy(), forecasts, target), want, rtol=1e-12, atol=0)

    def test_extremes(self):
        assert value(BinaryCrossEntropy(), torch.tensor([1e4, -1e4]), torch.tensor([1, 0])) == 0
        assert value(BinaryCrossEntropy(), torch.tensor([1e4, -1e4]), torch.tensor([0, 1])) == 1e4
        certain = torch.tensor([0.0, 1.0])
        assert value(BinaryCrossEntropy(from_logits=False), certain, torch.tensor([0, 1])) == 0
        assert value(BinaryCrossEntropy(from_logits=False), certain, torch.tensor([1, 1])) == math.inf
        tiny = torch.tensor([1e-30])
        assert value(BinaryCrossEntropy(from_logits=False), tiny, torch.tensor([1])).item() == pytest.approx(
            30 * math.log(10), rel=1e-7
        )
        with pytest.warns(UserWarning, match="1 of 1 rows gave nan"):
            assert value(BinaryCrossEntropy(from_logits=False), torch.tensor([1.5]), torch.tensor([1])).isnan()

    def test_other_targets_are_invalid(self):
        metric = BinaryCrossEntropy()
        metric.update(self.forecasts, torch.full((60,), 2))
        with pytest.raises(InvalidTargetError, match="60 targets"):
            metric.compute()
        metric = BinaryCrossEntropy()
        metric.update(self.forecasts, torch.full((60,), 1.5))
        with pytest.raises(InvalidTargetError, match="60 targets"):
            metric.compute()

    def test_two_logits_a_row_and_one_are_the_same(self):
        logits = torch.randn(40, 2, dtype=torch.float64)
        target = torch.arange(40) % 2
        one = value(BinaryCrossEntropy(), logits[:, 1] - logits[:, 0], target)
        torch.testing.assert_close(one, value(CrossEntropy(), logits, target), rtol=1e-12, atol=0)
        assert value(BinaryCrossEntropy(), score_tokens(logits, target)) == value(CrossEntropy(), logits, target)

    def test_every_metric_takes_binary_scores(self):
        scores = score_tokens(self.forecasts, self.target, binary="logits")
        accuracy = (self.forecasts > 0).long() == self.target
        assert value(TokenAccuracy(), scores) == accuracy.double().mean()
        together = TokenMetricCollection(
            [CrossEntropy(), BinaryCrossEntropy(), BrierScore(), ExpectedCalibrationError()]
        )
        together.update(self.forecasts, self.target)
        values = together.compute()
        assert values["binary_cross_entropy"] == values["cross_entropy"]
        want = 2 * sklearn.metrics.brier_score_loss(self.target, self.forecasts.double().sigmoid())
        assert values["brier_score"].item() == pytest.approx(want, rel=1e-12)

    def test_what_is_not_one_number_a_target_is_refused(self):
        with pytest.raises(
            InvalidInputError, match=r"binary logits as floats of the targets' shape \(3,\); got \(3, 2\)"
        ):
            BinaryCrossEntropy().update(torch.zeros(3, 2), torch.zeros(3).long())
        with pytest.raises(InvalidInputError, match=r"got \(3,\) of torch.int64"):
            BinaryCrossEntropy().update(torch.zeros(3).long(), torch.zeros(3).long())
        with pytest.raises(InvalidInputError, match="takes scores of two classes; got 5"):
            BinaryCrossEntropy().update(score_tokens(torch.zeros(1, 5), torch.tensor([1])))
        with pytest.raises(InvalidInputError, match="binary is 'logits' or 'probabilities'; got 'odds'"):
            score_tokens(torch.zeros(3), torch.zeros(3).long(), binary="odds")

    @pytest.mark.parametrize("from_logits", ["false", 0, None])
    def test_from_logits_is_true_or_false(self, from_logits):
        with pytest.raises(MetricOptionError, match="from_logits is True or False; got"):
            BinaryCrossEntropy(from_logits=from_logits)
