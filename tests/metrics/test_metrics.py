"""Every built-in metric: against 50 digits, hand-derived values, torch, torchmetrics and scikit-learn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics
from support import reference
from torch.nn import functional as F

from xent_metrics import (
    BitsPerByte,
    BytePerplexity,
    CalibrationWeightedCrossEntropy,
    CrossEntropy,
    ExpectedCalibrationError,
    MaximumCalibrationError,
    Perplexity,
    RMSCalibrationError,
    TokenAccuracy,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import InvalidInputError, MetricOptionError

BUILT_IN = sorted(reference.REFERENCES)  # the others have their references in reference_family.py
OPTIONS = {
    "expected_calibration_error": [{}, {"num_bins": 1}],
    "rms_calibration_error": [{}, {"num_bins": 7}],
    "calibration_weighted_cross_entropy": [{}, {"strength": 0.0}, {"strength": 5.5, "num_bins": 4}],
}


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def facts(shape):
    """Bytes and words of each row, some of them 0."""
    rows = torch.arange(math.prod(shape)).reshape(shape)
    return {"num_bytes": rows * 5 % 7, "num_words": rows % 3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in BUILT_IN for options in OPTIONS.get(name, [{}])]
)
def test_metrics_are_those_of_fifty_digits(name, options, dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    rows, targets = logits.double().flatten(0, 1).tolist(), target.flatten().tolist()
    lengths = facts(target.shape)
    scores = dataclasses.replace(score_tokens(logits, target), **lengths)
    want = reference.REFERENCES[name](rows, targets, **{k: v.flatten().tolist() for k, v in lengths.items()}, **options)
    got = value(get_metric(name, **options), scores)
    assert got.item() == pytest.approx(float(want), rel=1e-13 if dtype == torch.float64 else 1e-6)


def test_uniform_logits():
    logits, target = torch.zeros(2, 5, 256), torch.arange(10).view(2, 5)
    assert value(CrossEntropy(), logits.double(), target).item() == pytest.approx(math.log(256), rel=1e-15)
    assert value(CrossEntropy(unit="bits"), logits.double(), target).item() == pytest.approx(8, rel=1e-15)
    assert value(Perplexity(), logits.double(), target).item() == pytest.approx(256, rel=1e-14)
    one_byte = torch.ones(256, dtype=torch.long)
    assert value(BitsPerByte(token_bytes=one_byte), logits.double(), target).item() == pytest.approx(8, rel=1e-15)
    assert value(BytePerplexity(token_bytes=2 * one_byte), logits.double(), target).item() == pytest.approx(16)
    assert value(TokenAccuracy(), logits, target).item() == 0.1  # the first of equal maxima is class 0
    ece = value(ExpectedCalibrationError(), logits, target)
    assert ece.item() == pytest.approx(0.1 - 1 / 256)


def test_a_model_that_is_certain_and_right_or_wrong():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert value(CrossEntropy(), logits, torch.tensor([0, 1])) == 0
    assert value(Perplexity(), logits, torch.tensor([0, 1])) == 1
    assert value(CrossEntropy(), logits, torch.tensor([0, 0])) == 5000
    assert value(ExpectedCalibrationError(), logits, torch.tensor([0, 0])) == 0.5
    assert value(MaximumCalibrationError(), logits, torch.tensor([1, 0])) == 1
    assert value(Perplexity(), 10 * logits, torch.tensor([1, 0])) == math.inf


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("weights", ["none", "random", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_training_loss_over_batches_is_torchs_over_all(dtype, weights, smoothing, soft, batch):
    logits, target = batch[0].to(dtype), batch[1]
    class_weight = None if weights == "none" else torch.rand(13)
    if weights == "zeros":
        class_weight[:6] = 0
    if soft:
        target = torch.randn(3, 8, 13, dtype=dtype).softmax(-1)
    metric = CrossEntropy(label_smoothing=smoothing, class_weight=class_weight)
    for row, ids in zip(logits, target, strict=True):
        metric.update(row, ids)
    want = F.cross_entropy(
        logits.flatten(0, 1).double(),
        target.flatten(0, 1).double() if soft else target.flatten(),
        weight=None if class_weight is None else class_weight.double(),
        label_smoothing=smoothing,
    )
    tight = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(metric.compute(), want, rtol=tight, atol=0)


def test_row_weights_weigh_every_sum(batch):
    logits, target = batch[0].double(), batch[1]
    weight = torch.arange(24).view(3, 8) / 7
    got = value(CrossEntropy(), logits, target, weight=weight)
    want = reference.weighted_cross_entropy(
        logits.flatten(0, 1).tolist(), target.flatten().tolist(), weight.flatten().tolist()
    )
    assert got.item() == pytest.approx(float(want), rel=1e-14)
    counted = target != -100
    hits = (logits.argmax(-1) == target) * weight
    want = hits[counted].sum() / weight[counted].sum()
    assert value(TokenAccuracy(), logits, target, weight=weight).item() == pytest.approx(want.item(), rel=1e-6)
    # A whole weight is that many rows.
    repeats = torch.arange(24) % 4
    for name in ("cross_entropy", "expected_calibration_error", "calibration_weighted_cross_entropy"):
        once = value(get_metric(name), logits, target, weight=repeats.view(3, 8))
        many = value(
            get_metric(name),
            logits.flatten(0, 1).repeat_interleave(repeats, 0),
            target.flatten().repeat_interleave(repeats),
        )
        assert torch.equal(once, many)


def test_perplexity_is_torchmetrics_where_that_is_right():
    logits, target = torch.randn(4, 9, 50), torch.randint(50, (4, 9))
    target[1, :4] = -100
    theirs = torchmetrics.text.Perplexity(ignore_index=-100)
    theirs.update(logits, target)
    assert value(Perplexity(), logits, target).item() == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_cross_entropy_is_scikit_learns_log_loss():
    logits, target = torch.randn(60, 7, dtype=torch.float64), torch.randint(7, (60,))
    want = sklearn.metrics.log_loss(target.numpy(), logits.softmax(-1).numpy(), labels=np.arange(7))
    assert value(CrossEntropy(), logits, target).item() == pytest.approx(want, rel=1e-12)
    want = sklearn.metrics.accuracy_score(target.numpy(), logits.argmax(-1).numpy())
    assert value(TokenAccuracy(), logits, target).item() == want


@pytest.mark.parametrize(
    ("ours", "norm"),
    [(ExpectedCalibrationError, "l1"), (RMSCalibrationError, "l2"), (MaximumCalibrationError, "max")],
)
@pytest.mark.parametrize("num_bins", [1, 10, 15, 37])
def test_calibration_is_torchmetrics_where_that_is_right(ours, norm, num_bins):
    """In float64, and with no confidence on a bin's edge: there their bins are (…] as ours, but 1.0 has one of its own."""
    logits, target = 2 * torch.randn(200, 6, dtype=torch.float64), torch.randint(6, (200,))
    theirs = torchmetrics.classification.MulticlassCalibrationError(num_classes=6, n_bins=num_bins, norm=norm)
    theirs.update(logits.softmax(-1), target)
    got = value(ours(num_bins=num_bins), logits, target)
    assert got.item() == pytest.approx(theirs.compute().item(), rel=2e-6)


def test_bins_hold_their_upper_edge():
    """Confidences 1/2 and 1: (0, 1/2] and (1/2, 1], not [1/2, 1)."""
    logits = torch.tensor([[0.0, 0], [0, 0], [1e4, 0]])
    gaps = MaximumCalibrationError(num_bins=2)
    assert value(gaps, logits, torch.tensor([0, 0, 1])) == 1
    gaps.reset()
    assert value(gaps, logits, torch.tensor([0, 0, 0])) == 0.5
    assert value(ExpectedCalibrationError(num_bins=2), logits, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3)


def test_special_tokens_are_in_neither_sum(batch):
    logits, target = batch
    table = torch.arange(13) % 4  # every fourth class has no bytes
    metric = BitsPerByte(token_bytes=table)
    keep = (target != -100) & (table[target.clamp(min=0)] > 0)
    want = (
        F.cross_entropy(logits[keep].double(), target[keep], reduction="sum") / math.log(2) / table[target[keep]].sum()
    )
    assert value(metric, logits, target).item() == pytest.approx(want.item(), rel=1e-6)
    assert value(BitsPerByte(), score_tokens(logits, target, token_bytes=table)) == metric.compute()


def test_a_byte_table_may_be_longer_than_the_vocabulary_but_not_shorter(batch):
    table = torch.arange(20)
    assert value(BitsPerByte(token_bytes=table), *batch) == value(BitsPerByte(token_bytes=table[:13]), *batch)
    assert value(BitsPerByte(token_bytes=table.numpy()), *batch) == value(BitsPerByte(token_bytes=table), *batch)
    with pytest.raises(InvalidInputError, match=r"one entry of token_bytes per class, shape \(13,\); got \(12,\)"):
        BitsPerByte(token_bytes=table[:12]).update(*batch)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross_entropy", {"unit": "bit"}, r'unit is "nats" or "bits"; got \'bit\''),
        ("cross_entropy", {"label_smoothing": -0.1}, r"label_smoothing is a number in \[0, 1\]; got -0\.1"),
        (
            "cross_entropy",
            {"units": "bits"},
            r"has no option 'units'\. Did you mean 'unit'\? Its options: unit, label_sm",
        ),
        ("cross_entropy", {"label_smoothing": "a lot"}, "label_smoothing is a number in .* got 'a lot'"),
        ("bits_per_byte", {"token_bytes": torch.tensor([1, -1])}, "whole numbers from 0; got tensor"),
        ("byte_perplexity", {"token_bytes": torch.ones(3)}, "whole numbers from 0; got tensor"),
        ("perplexity", {"ignore_index": None}, "ignore_index is an int; got None"),
        ("expected_calibration_error", {"num_bins": 0}, "num_bins is a whole number of at least 1; got 0"),
        ("expected_calibration_error", {"num_bins": 2.0}, r"num_bins is a whole number of at least 1; got 2\.0"),
        ("expected_calibration_error", {"num_bins": True}, "num_bins is a whole number of at least 1; got True"),
        ("expected_calibration_error", {"binning": "mas"}, r'binning is "width" or "mass"; got \'mas\''),
        ("calibration_weighted_cross_entropy", {"strength": -1}, "strength is at least 0; got -1"),
        ("calibration_weighted_cross_entropy", {"strength": math.nan}, "strength is at least 0; got nan"),
    ],
)
def test_an_option_that_cannot_be_says_so_when_the_metric_is_built(name, options, message):
    with pytest.raises(MetricOptionError, match=message):
        get_metric(name, **options)
