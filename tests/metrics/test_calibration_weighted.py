"""The calibration-weighted cross entropy as a metric and as a loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xent_metrics import (
    CalibrationWeightedCrossEntropy,
    CrossEntropy,
)
from xent_metrics.errors import InvalidInputError


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def test_without_strength_or_bins_it_is_the_cross_entropy(batch):
    want = value(CrossEntropy(), *batch)
    torch.testing.assert_close(value(CalibrationWeightedCrossEntropy(strength=0.0), *batch), want, rtol=1e-15, atol=0)
    torch.testing.assert_close(value(CalibrationWeightedCrossEntropy(num_bins=1), *batch), want, rtol=1e-15, atol=0)


class TestCalibrationWeightedLoss:
    def test_on_an_empty_state_it_is_torchs_cross_entropy_with_its_gradient(self, batch):
        ours, theirs = (batch[0].clone().requires_grad_() for _ in range(2))
        loss = CalibrationWeightedCrossEntropy().loss(ours, batch[1])
        want = F.cross_entropy(theirs.flatten(0, 1), batch[1].flatten())
        loss.backward()
        want.backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(ours.grad, theirs.grad)

    def test_it_weighs_each_token_by_its_bins_gap_so_far(self, batch):
        metric = CalibrationWeightedCrossEntropy(strength=3.0, num_bins=4)
        metric.update(*batch)
        logits, target = torch.randn(6, 13, requires_grad=True), torch.arange(6)
        loss = metric.loss(logits, target)
        seen = batch[1] != -100
        confidence, prediction = batch[0].softmax(-1).max(-1)
        hits = (prediction == batch[1])[seen].double()
        bins = (confidence[seen] * 4).ceil().long() - 1
        gaps = torch.zeros(4, dtype=torch.float64)
        for b in range(4):
            if (bins == b).any():
                gaps[b] = (hits[bins == b].mean() - confidence[seen][bins == b].double().mean()).abs()
        weight = 1 + 3.0 * gaps[(logits.softmax(-1).amax(-1) * 4).ceil().long() - 1]
        nll = F.cross_entropy(logits, target, reduction="none")
        want = (weight.detach() * nll).sum() / weight.sum()
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
        (got,) = torch.autograd.grad(loss, logits)
        (expected,) = torch.autograd.grad(want, logits)
        torch.testing.assert_close(got, expected)

    def test_it_leaves_the_state_and_ignored_targets_alone(self, batch):
        metric = CalibrationWeightedCrossEntropy()
        metric.update(*batch)
        before = metric.state.clone()
        logits = batch[0].bfloat16().requires_grad_()
        metric.loss(logits, batch[1]).backward()
        assert torch.equal(metric.state, before)
        assert not logits.grad[batch[1] == -100].any()
        assert metric.loss(batch[0], torch.full_like(batch[1], -100)).isnan()

    def test_shapes_that_do_not_match_are_named(self):
        with pytest.raises(InvalidInputError, match=r"one target per row of logits, shape \(2, 3\); got \(3,\)"):
            CalibrationWeightedCrossEntropy().loss(torch.zeros(2, 3, 4), torch.zeros(3).long())
        with pytest.raises(InvalidInputError, match=r"loss needs integer targets; got torch\.float32"):
            CalibrationWeightedCrossEntropy().loss(torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.25))

    @pytest.mark.parametrize("wrong", [4, -1, 10**9])
    def test_a_target_out_of_range_is_nan_with_the_other_rows_gradients(self, wrong):
        logits = torch.randn(3, 4, requires_grad=True)
        loss = CalibrationWeightedCrossEntropy().loss(logits, torch.tensor([0, wrong, 2]))
        assert loss.isnan()
        loss.backward()
        assert not logits.grad[1].any()

    @pytest.mark.parametrize("ignore_index", [-100, 2])
    def test_numpy_is_taken_and_any_class_may_be_ignored(self, ignore_index):
        metric = CalibrationWeightedCrossEntropy(ignore_index=ignore_index)
        logits, target = torch.randn(5, 4), torch.tensor([0, ignore_index, 3, 1, ignore_index])
        want = F.cross_entropy(logits, target, ignore_index=ignore_index)
        torch.testing.assert_close(metric.loss(logits.numpy(), target.numpy()), want)
