"""Cross entropy and perplexity, against torch, torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics
from torch.nn import functional as F

from xent_metrics import (
    CrossEntropy,
    ExpectedCalibrationError,
    Perplexity,
)
from xent_metrics.metrics import MaximumCalibrationError


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


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
