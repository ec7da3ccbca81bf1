"""check_metric over everything registered, so that a new metric is tested by existing; and metrics that break each promise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support.broken_metrics import BROKEN, Broken
from support.registered import buildable

from xent_metrics import (
    Binned,
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
from xent_metrics.metrics.confidence_bins import BinSum
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
    assert check_metric(Broken()) == ()


def test_what_is_not_checked_without_lm_eval_is_said(monkeypatch):
    monkeypatch.setattr("xent_metrics.testing.contract.find_spec", lambda name: None)
    assert check_metric(Broken()) == ("lm-eval is not installed: the value by its gather and aggregation",)


@pytest.mark.parametrize(
    ("promise", "kind"),
    [(p, k) for p, kinds in BROKEN.items() for k in (kinds if isinstance(kinds, tuple) else [kinds])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_promise_is_named_with_the_metric(promise, kind):
    with pytest.raises(AssertionError) as error:
        check_metric(kind())
    assert str(error.value).startswith("broken ")
    assert promise in str(error.value)


def test_every_promise_is_seen_broken():
    from xent_metrics.testing import contract as testing

    for promise in testing._PROMISES:
        assert any(key.startswith(promise) for key in BROKEN), promise


@dataclass(frozen=True)
class ForgetfulSum(BinSum):
    """A shared sum with a name that leaves out the number of bins."""

    @property
    def name(self):
        return f"confidence_bins.{self.kind}"

    def terms(self, scores):
        term = super().terms(scores)
        return Binned(term.values, term.bins, 64)


class ForgetfulCalibrationError(ExpectedCalibrationError):
    def _sum(self, kind):
        return ForgetfulSum(kind, self.binning, self.num_bins)


def test_a_built_in_that_loses_its_option_is_caught():
    with pytest.raises(AssertionError, match="option num_bins changes what is added"):
        check_metric(ForgetfulCalibrationError())


def test_no_host_sync_lets_ordinary_work_through():
    with no_host_sync() as device:
        scores = score_tokens(torch.rand(3, 4, device=device), torch.zeros(3, device=device, dtype=torch.long))
        assert scores.nll.device.type == device.type
        with pytest.raises(RuntimeError, match="copied from the device to the host"):
            scores.nll.cpu()
