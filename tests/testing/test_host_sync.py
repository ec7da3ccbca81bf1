"""No host sync: scoring and updates run on tensors without data, and as one graph, with equal results."""

from __future__ import annotations

import pytest
import torch
from support.metric_kinds import IDS, KINDS
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.data import DataLoader, DistributedSampler

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    TokenMetric,
    TokenMetricCollection,
    get_metric,
    score_hidden_states,
    score_tokens,
)
from xent_metrics.hosts.config import build_metrics
from xent_metrics.hosts.lightning.duplicates import without_duplicates
from xent_metrics.hosts.lightning.stage import StageMetrics
from xent_metrics.hosts.lightning.step_output import read
from xent_metrics.hosts.transformers import TrainerMetrics
from xent_metrics.samplers import sample_weights
from xent_metrics.sums import exact_sum
from xent_metrics.testing import no_host_sync

NAMES = ["cross_entropy", "perplexity", "top_k_accuracy"]
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


def test_no_step_of_a_callback_waits():
    """A batch that XentCallback reads, with samples that the sampler repeats, into its stage's metrics."""
    stage = StageMetrics(build_metrics(NAMES, standard_errors=True), stage="val", num_loaders=1, device="cpu")
    data = list(range(11))
    loader = DataLoader(data, 3, sampler=DistributedSampler(data, num_replicas=2, rank=1, shuffle=False))
    assert 0 in sample_weights(loader.sampler)
    with no_host_sync() as device:
        for metric in stage.all.members().values():
            on_device(metric, device)
        logits, target = torch.empty(3, 9, 13, device=device), torch.empty(3, 9, device=device, dtype=torch.long)
        for batch_idx in range(2):
            given = without_duplicates(read({"logits": logits, "labels": target}, shift=True), [loader], batch_idx)
            stage.update(0, *given)
        assert given.weight.device.type == device.type
        assert {metric.state.device.type for metric in stage.all.members().values()} == {device.type}


def test_no_step_of_the_trainers_metrics_waits():
    metrics = TrainerMetrics(NAMES)
    with no_host_sync() as device:
        for metric in metrics.metrics.members().values():
            on_device(metric, device)
        states = metrics.preprocess_logits(*given(device, 13))
        assert states.device.type == device.type


INDICES = [
    1, -1, slice(1, None), (Ellipsis, 0), (slice(None), None, slice(0, 4, 2)), (0, Ellipsis, slice(-2, None)),
    torch.tensor([2, 0]), (torch.tensor([0, 1]), torch.tensor([2, 2])),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_tensor_without_data_is_indexed_like_one_with_data(index):
    real = torch.arange(60).reshape(3, 4, 5)[:, 1:].transpose(0, 1)
    view = real[index]
    parts = index if isinstance(index, tuple) else (index,)
    with no_host_sync() as device:
        there = tuple(
            torch.empty(part.shape, dtype=part.dtype, device=device) if torch.is_tensor(part) else part
            for part in parts
        )
        tensor = torch.empty(3, 4, 5, device=device, dtype=torch.long)[:, 1:].transpose(0, 1)
        fake = tensor[there]
        assert (fake.device.type, fake.dtype, fake.shape, fake.stride()) == (
            "cuda",
            real.dtype,
            view.shape,
            view.stride(),
        )
        if not any(map(torch.is_tensor, parts)):
            assert fake.storage_offset() == view.storage_offset()
        tensor[there] = 0
        tensor[tensor > 0] = 0


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.__setitem__(x > 0, x[:, 0]), DynamicOutputShapeException),
        (lambda x: x.nonzero(), (DynamicOutputShapeException, RuntimeError)),
        (lambda x: bool(x.any()), DataDependentOutputException),
        (lambda x: x.cpu(), RuntimeError),
        (lambda x: x.tolist(), (DataDependentOutputException, RuntimeError)),
        (lambda x: x + torch.ones(3), RuntimeError),
    ],
)
def test_what_waits_for_the_device_raises(what, error):
    with no_host_sync() as device, pytest.raises(error):
        what(torch.empty(3, 3, device=device))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda x: torch.ones(3).to(x.device), r"a tensor \(3,\) is copied from the host's pageable memory"),
        (
            lambda x: torch.ops.aten.copy_(x[0], torch.ones(3)),
            r"a tensor \(3,\) is copied from the host's pageable memory",
        ),
        (lambda x: torch.ops.aten.copy_(torch.ones(3), x[0]), "a tensor is copied from the device to the host"),
        (lambda x: x.to("cpu"), "a tensor is copied from the device to the host"),
    ],
)
def test_copies_that_wait_say_so(what, says):
    with no_host_sync() as device, pytest.raises(RuntimeError, match=says):
        what(torch.empty(3, 3, device=device))


@pytest.mark.parametrize(
    "what",
    [
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: torch.ops.aten.copy_(x[0], torch.ones(3), True),
        lambda x: torch.ops.aten.copy_(x[0], torch.ones(3), non_blocking=True),
        lambda x: torch.ops.aten.copy_(x[0], x[1]),
        lambda x: x.to(torch.float64),
        lambda x: torch.tensor(2.0).to(x.device),
        lambda x: torch.ones(3).double(),
        lambda x: torch.where(x > 0, torch.tensor(1.0), x),
    ],
)
def test_what_waits_for_nothing_passes(what):
    with no_host_sync() as device:
        what(torch.empty(3, 3, device=device))


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


def collection():
    return TokenMetricCollection({name: kind() for name, kind in zip(IDS, KINDS, strict=True)})


@pytest.mark.parametrize("kind", [*KINDS, collection], ids=[*IDS, "collection"])
def test_update_and_forward_are_one_graph_each(kind, batch):
    """From logits, equal within rounding, for a native backend isn't asked in a graph; from scores, the same bits."""
    given = [batch] if kind is collection else [batch, (kind().score(*batch),)]
    for arguments in given:
        torch._dynamo.reset()
        eager, updated, forwarded = kind(), kind(), kind()
        want, tolerance = eager(*arguments), 1e-6 if len(arguments) == 2 else 0
        torch.compile(updated.update, fullgraph=True, backend="eager")(*arguments)
        batch_value = torch.compile(forwarded, fullgraph=True, backend="eager")(*arguments)
        for got in (batch_value, updated.compute(), forwarded.compute()):
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
