"""Every registered metric on other devices: no float64 where there is none, nothing that isn't deterministic, one copy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.device_ops import CopiesToHost, OnlyDeterministic, on_device
from support.registered import buildable

from xent_metrics import CrossEntropy, Document, Grouped, Position, StandardError, TokenMetricCollection, get_metric
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.testing import made_up_batch, no_float64, no_host_sync
from xent_metrics.wrappers.grouping import in_groups
from xent_metrics.wrappers.standard_error import standard_error_from_moments

OTHERS = {
    "equal mass": lambda: get_metric("expected_calibration_error", binning="mass"),
    "weighted, equal mass": lambda: get_metric("calibration_weighted_cross_entropy", binning="mass"),
    "training loss": lambda: CrossEntropy(label_smoothing=0.1, class_weight=torch.arange(13) / 7),
    "error of a ratio": lambda: StandardError(CrossEntropy()),
    "error of bins": lambda: StandardError(get_metric("expected_calibration_error")),
    "error of own sums": lambda: StandardError(get_metric("mean_reciprocal_rank")),
    "grouped": lambda: Grouped(CrossEntropy(), by=Position([0, 4])),
    "documents": lambda: Grouped(get_metric("expected_calibration_error"), by=Document(9)),
    "error of groups": lambda: StandardError(Grouped(CrossEntropy(), by=Position([0, 4]))),
}
KINDS = {**{name: lambda name=name: get_metric(name) for name in buildable()}, **OTHERS}


def scored(metric):
    """Scores with every field, from made-up logits."""
    inner = metric
    while hasattr(inner, "metric"):
        inner = inner.metric
    logits, target = made_up_batch(inner)
    scores = inner.score((logits, logits / 2) if isinstance(inner, PairMetric) else logits, target)
    rows = torch.arange(target.numel()).reshape(target.shape)
    kind = "token" if "token" in metric.row_kinds else min(metric.row_kinds)
    scores = dataclasses.replace(scores, num_bytes=rows % 5, num_words=rows % 3, row_kind=kind)
    return in_groups(scores, rows % 9)


def without_data(scores, device, widest):
    """The same scores on a device without data."""

    def there(tensor):
        dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype if widest == torch.float32 else tensor.dtype, device=device)

    return scores.map(there)


def use(metric, scores, device, widest):
    """Update, forward, weigh and read the value where it is."""
    on_device(metric, device)
    weight = torch.empty(scores.nll.shape, device=device)
    metric.update(without_data(scores, device, widest))
    metric.update(dataclasses.replace(without_data(scores, device, widest), weight=weight))
    if not isinstance(metric, StandardError):  # its value needs a gradient, which tensors without data have none of
        value = metric(without_data(scores, device, widest))
        assert value.dtype == widest
        assert value.device.type == device.type
    assert metric.state.device.type == device.type


@pytest.mark.parametrize("kind", KINDS)
def test_no_float64_is_made_on_a_device_without_it(kind):
    metric = KINDS[kind]()
    scores = scored(metric)
    with no_float64() as device:
        use(metric, scores, device, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_mode_refuses_nothing_on_cuda(kind):
    metric = KINDS[kind]()
    scores = scored(metric)
    with no_host_sync() as device, OnlyDeterministic():
        use(metric, scores, device, torch.float64)


def test_the_value_of_a_standard_error_needs_no_matrix_product_off_the_cpu():
    """With its gradient, on the meta device: tensors without data on CUDA have none."""
    total, products = torch.ones(2, device="meta"), torch.ones(2, 2, device="meta")
    with OnlyDeterministic():
        error = standard_error_from_moments(lambda sums: sums[0] / sums[1], total, products, total[0])
    assert error.shape == ()


def test_it_is_that_of_the_matrix_product():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    rows = torch.randn(9, 2).double() + 3
    given = rows.sum(0), rows.T @ rows, torch.tensor(9.0).double()
    want = standard_error_from_moments(lambda sums: sums[0] / sums[1], *given)
    got = standard_error_from_moments(lambda sums: sums[0] / sums[1], *(each.as_subclass(Elsewhere) for each in given))
    torch.testing.assert_close(got.as_subclass(torch.Tensor), want, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x.cumsum(0),
        lambda x: torch.histc(x, 3),
        lambda x: x.put_(torch.zeros(1, dtype=torch.long, device=x.device), x[:1]),
        lambda x: x @ x,
    ],
)
def test_what_isnt_deterministic_is_refused(refused):
    with no_host_sync() as device, OnlyDeterministic(), pytest.raises(RuntimeError, match="no deterministic"):
        refused(torch.empty(3, device=device))


@pytest.mark.parametrize("kind", KINDS)
def test_compute_copies_the_state_once_and_returns_what_the_cpu_computes(kind, monkeypatch):
    metric = KINDS[kind]()
    metric.update(scored(metric))
    want, on_host = metric.compute(), metric.state
    metric._apply(lambda tensor: tensor.to("meta"))
    copied = copies_of(on_host, monkeypatch)
    with CopiesToHost() as copies:
        got = metric.compute()
    assert torch.equal(got, want)
    assert (got.device.type, got.dtype) == ("cpu", torch.float64)
    assert copies.total == 0
    assert len(copied) == 1


def copies_of(on_host, monkeypatch):
    """Let the one state on the meta device have these data once it is copied to the CPU."""
    copied = []

    def cpu(tensor):
        copied.append(tensor.shape)
        assert tensor.shape == on_host.shape
        return on_host

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: cpu(tensor) if tensor.is_meta else tensor)
    return copied


def test_a_collection_copies_all_states_at_once(monkeypatch):
    names = ["cross_entropy", "perplexity", "expected_calibration_error", "token_accuracy"]
    metrics = TokenMetricCollection(names)
    metrics.update(*made_up_batch(CrossEntropy()))
    want = metrics.compute()
    on_host = torch.cat([metric.state for metric in metrics.members().values()])
    for metric in metrics.members().values():
        metric._apply(lambda tensor: tensor.to("meta"))
    copied = copies_of(on_host, monkeypatch)
    got = metrics.compute()
    assert {name: value.item() for name, value in got.items()} == {name: value.item() for name, value in want.items()}
    assert len(copied) == 1
