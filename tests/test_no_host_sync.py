"""No host sync: scoring and updates run on tensors without data, and as one graph, with equal results."""

from __future__ import annotations

import pytest
import torch
from metric_kinds import IDS, KINDS

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    TokenMetric,
    TokenMetricCollection,
    exact_sum,
    get_metric,
    score_hidden_states,
    score_tokens,
)
from xent_metrics.testing import no_host_sync

SIZES = [7, 3000]  # one argmax and the blockwise one


def on_device(metric: TokenMetric, device: torch.device) -> TokenMetric:
    """The metric, its state and buffers on the device without data."""
    return metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


def given(device, vocab_size, dtype=torch.float32):
    return torch.empty(2, 6, vocab_size, device=device, dtype=dtype), torch.empty(2, 6, device=device, dtype=torch.long)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", ["none", "all", "soft"])
def test_scoring_never_waits(options, dtype, vocab_size):
    with no_host_sync() as device:
        logits, target = given(device, vocab_size, dtype)
        more = {}
        if options == "all":
            more = {
                "label_smoothing": 0.1,
                "class_weight": torch.empty(vocab_size, device=device),
                "weight": torch.empty(2, 6, device=device),
                "token_bytes": torch.empty(vocab_size, device=device, dtype=torch.long),
            }
        if options == "soft":
            target = torch.empty(2, 6, vocab_size, device=device)
        scores = score_tokens(
            logits[:, :-1], target[:, 1:], **{k: v[:, 1:] if k == "weight" else v for k, v in more.items()}
        )
        assert {value.device.type for value in scores.fields().values()} == {device.type}
        hidden, head = torch.empty(2, 6, 5, device=device, dtype=dtype), torch.empty(vocab_size, 5, device=device)
        scores = score_hidden_states(hidden, head, target, bias=head[:, 0], logit_scale=2.0, logit_softcap=30.0, **more)
        assert {value.device.type for value in scores.fields().values()} == {device.type}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_no_update_waits(kind, dtype):
    """Of these metrics and options; `check_metric` asks the same of everything that is registered."""
    metric = kind()
    with no_host_sync() as device:
        metric = on_device(metric, device)
        batch = given(device, 13, dtype)
        metric.update(*batch)
        metric(*batch, weight=torch.empty(2, 6, device=device))
        metric.merge_state(metric)
        assert metric.state.device.type == device.type


def test_a_collections_update_does_not_wait_either():
    members = {name: kind() for name, kind in zip(IDS, KINDS, strict=True)}
    with no_host_sync() as device:
        collection = TokenMetricCollection({name: on_device(metric, device) for name, metric in members.items()})
        collection.update(*given(device, 13))
        collection(*given(device, 13), weight=torch.empty(2, 6, device=device))
        assert {metric.state.device.type for metric in collection.members().values()} == {device.type}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("options", ["none", "all", "soft"])
def test_scoring_is_one_graph(options, backend, batch):
    logits, target = batch
    more = {}
    if options == "all":
        more = {"label_smoothing": 0.1, "class_weight": torch.rand(13), "token_bytes": torch.arange(13)}
    if options == "soft":
        target = torch.randn(3, 8, 13).softmax(-1)

    def score(logits, target):
        return score_tokens(logits, target, **more)

    want = score(logits, target).fields()
    got = torch.compile(score, fullgraph=True, backend=backend)(logits, target).fields()
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)


def test_strided_logits_are_one_graph(batch):
    def score(logits, target):
        return score_tokens(logits[:, :-1], target[:, 1:]).nll

    got = torch.compile(score, fullgraph=True, backend="eager")(*batch)
    torch.testing.assert_close(got, score(*batch), rtol=1e-6, atol=1e-6)  # a native backend isn't asked in a graph


def test_hidden_states_are_one_graph(batch):
    hidden, head = torch.randn(3, 8, 5), torch.randn(13, 5)

    def score(hidden, head, target):
        return score_hidden_states(hidden, head, target, bias=head[:, 0], logit_softcap=3.0).nll

    got = torch.compile(score, fullgraph=True, backend="eager")(hidden, head, batch[1])
    torch.testing.assert_close(got, score(hidden, head, batch[1]), rtol=1e-6, atol=1e-6)


def test_exact_sums_are_one_graph_and_the_same_bits():
    values, bins = torch.randn(200) * 1e6, torch.randint(7, (200,))
    values[3], values[5] = float("nan"), float("inf")

    def sums(values, bins):
        row = exact_sum.exact_sum(values)
        return exact_sum.merge(torch.stack([row, row])), exact_sum.exact_sum_by_bin(values, bins, 7)

    for got, want in zip(
        torch.compile(sums, fullgraph=True, backend="aot_eager")(values, bins), sums(values, bins), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "metric",
    [
        CrossEntropy(),
        CrossEntropy(label_smoothing=0.1),
        get_metric("token_accuracy"),
        get_metric("calibration_weighted_cross_entropy"),
        BitsPerByte(token_bytes=torch.arange(13)),
    ],
    ids=lambda metric: f"{metric.name}-{len(metric.scoring_options())}",
)
def test_a_metrics_sums_are_one_graph_and_the_same_bits(metric, batch):
    scores = metric.score(*batch)
    fields = scores.fields()

    def sums(fields):
        return metric.exact_sums(type(scores)(**fields, vocab_size=13))

    got = torch.compile(sums, fullgraph=True, backend="eager")(fields)
    assert torch.equal(got, metric.exact_sums(scores))
