"""Every built-in metric: against 50 digits, hand-derived values, torch, torchmetrics and scikit-learn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torchmetrics
from support import reference
from support.registered import buildable

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    ExpectedCalibrationError,
    Perplexity,
    TokenAccuracy,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics import BytePerplexity, MaximumCalibrationError, RMSCalibrationError
from xent_metrics.testing.case import Case

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


@pytest.mark.parametrize("name", buildable())
def test_a_value_is_within_the_metrics_range(name):
    low, high = get_metric(name).value_range
    assert low < high
    for seed in range(3):
        found = Case.of(get_metric(name), seed=seed).used().compute()
        assert low <= found <= high


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
        ("bits_per_byte", {"token_bytes": torch.tensor([1, -1])}, "integers from 0; got -1"),
        ("byte_perplexity", {"token_bytes": torch.ones(3)}, r"got torch.float32. Pass token_bytes.long\(\)"),
        ("perplexity", {"ignore_index": None}, "ignore_index is an int; got None"),
        ("expected_calibration_error", {"num_bins": 0}, "num_bins is a whole number from 1 to 1,048,576; got 0"),
        ("expected_calibration_error", {"num_bins": 2.0}, r"num_bins is a whole number from 1 to 1,048,576; got 2\.0"),
        (
            "expected_calibration_error",
            {"num_bins": 10**12},
            "num_bins is a whole number from 1 to 1,048,576; got 1000000000000",
        ),
        ("expected_calibration_error", {"num_bins": True}, "num_bins is a whole number from 1 to 1,048,576; got True"),
        ("expected_calibration_error", {"binning": "mas"}, r'binning is "width" or "mass"; got \'mas\''),
        ("calibration_weighted_cross_entropy", {"strength": -1}, "strength is at least 0; got -1"),
        ("calibration_weighted_cross_entropy", {"strength": math.nan}, "strength is at least 0; got nan"),
    ],
)
def test_an_option_that_cannot_be_says_so_when_the_metric_is_built(name, options, message):
    with pytest.raises(MetricOptionError, match=message):
        get_metric(name, **options)
