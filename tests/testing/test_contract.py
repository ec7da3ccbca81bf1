"""check_metric over everything registered, so that a new metric is tested by existing; and metrics that break each promise."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.broken_metrics import Broken
from support.registered import buildable

from xent_metrics import (
    BitsPerByte,
    CalibrationWeightedCrossEntropy,
    CrossEntropy,
    ExpectedCalibrationError,
    RatioMetric,
    from_loglikelihoods,
    get_metric,
    score_tokens,
)
from xent_metrics.metrics import MaximumCalibrationError
from xent_metrics.testing import check_metric, no_host_sync


@pytest.mark.parametrize("name", buildable())
def test_every_registered_metric_keeps_the_contract(name):
    check_metric(get_metric(name))


@pytest.mark.parametrize(
    "metric",
    [
        CrossEntropy(unit="bits", ignore_index=3),
        CrossEntropy(label_smoothing=0.1, class_weight=torch.arange(6) / 5),
        CrossEntropy(class_weight=torch.tensor([0.0, 1, 2])),
        BitsPerByte(token_bytes=torch.arange(9)),
        ExpectedCalibrationError(num_bins=1, binning="mass"),
        MaximumCalibrationError(num_bins=40),
        CalibrationWeightedCrossEntropy(strength=7.0, num_bins=3),
    ],
    ids=repr,
)
def test_so_does_every_option(metric):
    metric_state = metric.state.clone()
    check_metric(metric, seed=3)
    assert torch.equal(metric.state, metric_state)


class NatsPerDocument(RatioMetric):
    name = "nats_per_document"
    row_kinds = frozenset({"document"})

    def per_token(self, scores):
        return scores.nll


def test_a_metric_of_documents_alone_keeps_it():
    check_metric(NatsPerDocument())
    metric = NatsPerDocument()
    metric.update(from_loglikelihoods([-1.0, -3.0]))
    assert metric.compute() == 2


def test_the_sound_one_passes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_metric(Broken()) is None


def test_what_is_not_checked_without_lm_eval_is_said(monkeypatch):
    monkeypatch.setattr("xent_metrics.testing.contract.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="lm-eval isn't installed, so its gather and aggregation weren't checked"):
        check_metric(Broken())


def test_no_host_sync_lets_ordinary_work_through():
    with no_host_sync() as device:
        scores = score_tokens(torch.rand(3, 4, device=device), torch.zeros(3, device=device, dtype=torch.long))
        assert scores.nll.device.type == device.type
        with pytest.raises(RuntimeError, match="copied from the device to the host"):
            scores.nll.cpu()
