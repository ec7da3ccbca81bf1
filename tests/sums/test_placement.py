"""Where the state and the scores are: a captured graph is refused, waiting for a device is said once."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.device_ops import on_device

from xent_metrics import CrossEntropy, Grouped, Position, StandardError, TokenMetricCollection, score_tokens
from xent_metrics.errors import CaptureError
from xent_metrics.sums import placement
from xent_metrics.sums.placement import keeping_values, refuse_capture, warn_of_waiting
from xent_metrics.testing import no_host_sync


@pytest.fixture
def capture(monkeypatch):
    """From the call on, a graph is being captured; tensors without data have to be made before."""

    def capture(captures=True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)

    return capture


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """No device was warned of in an earlier test."""
    monkeypatch.setattr(placement, "_warned_of", set())


KINDS = {
    "metric": CrossEntropy,
    "standard error": lambda: StandardError(CrossEntropy()),
    "grouped": lambda: Grouped(CrossEntropy(), by=Position([0, 4])),
    "collection": lambda: TokenMetricCollection(["cross_entropy", "token_accuracy"]),
}


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_update_is_refused_before_anything_runs(kind, call, capture):
    metric = KINDS[kind]()
    with no_host_sync() as device:
        for member in metric.members().values() if kind == "collection" else [metric]:
            on_device(member, device)
        logits, target = torch.empty(2, 6, 13, device=device), torch.zeros(2, 6, dtype=torch.long, device=device)
        capture()
        with pytest.raises(CaptureError, match=r"state is replaced, not written in place.*after each replay"):
            getattr(metric, call)(logits, target)


def test_on_a_cpu_nobody_asks_whether_a_graph_is_captured(capture, batch):
    capture()
    CrossEntropy().update(*batch)
    refuse_capture("cross_entropy", torch.device("cpu"))


def test_without_a_capture_nothing_is_refused(capture):
    capture(False)
    refuse_capture("cross_entropy", torch.device("cuda"))


def test_metrics_on_the_cpu_say_once_that_their_updates_wait():
    def scores():
        return score_tokens(torch.empty(2, 13, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))

    metrics = TokenMetricCollection(["cross_entropy", "perplexity", "token_accuracy"])
    with torch._subclasses.fake_tensor.FakeTensorMode():
        for metric in metrics.members().values():
            metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        with pytest.warns(UserWarning, match=r"on the CPU and its scores are on meta.*metric.to\('meta'\)") as said:
            metrics.update(scores())
        assert len([each for each in said if "every update waits" in str(each.message)]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics.update(scores())


def test_the_warning_says_how_to_move_the_metric():
    with pytest.warns(UserWarning, match=r"cross_entropy.*every update waits for cuda:1.*metric.to\('cuda:1'\)"):
        warn_of_waiting("cross_entropy", torch.device("cuda:1"))


def test_a_function_that_keeps_values_has_the_name_of_its_own():
    """By which torchmetrics tells `.half()` from `.to(device)`."""
    assert keeping_values(torch.Tensor.half).__name__ == "half"
