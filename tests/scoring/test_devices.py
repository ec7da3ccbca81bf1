"""What scoring asks of a GPU, counted on CUDA tensors without data; how much is computed at a time on which device."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from support.device_ops import Launches, OnlyDeterministic

from xent_metrics import score_hidden_states, score_tokens
from xent_metrics.metrics.distribution import entropy, squared_error, squared_log_normaliser
from xent_metrics.metrics.ranking import target_rank
from xent_metrics.scoring import devices
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.testing import no_float64, no_host_sync

TOKENS, V, H = 32_768, 128_256, 4_096
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EXTRA_SCORES = {
    "entropy": ExtraScore(entropy),
    "squared_error": ExtraScore(squared_error),
    "squared_log_normaliser": ExtraScore(squared_log_normaliser, of="logits"),
    "target_rank": ExtraScore(target_rank, of="logits"),
}


def test_scoring_logits_takes_few_launches():
    with no_host_sync() as device, Launches() as launches:
        logits = torch.empty(TOKENS, V, device=device, dtype=torch.bfloat16)
        target = torch.empty(TOKENS, device=device, dtype=torch.long)
        launches.counts.clear()
        score_tokens(logits, target)
    assert launches.counts["_log_softmax"] <= 90
    assert launches.total <= 400


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scoring_hidden_states_takes_few_large_products(dtype):
    with no_host_sync() as device, Launches() as launches:
        hidden, head = (torch.empty(rows, H, device=device, dtype=dtype) for rows in (TOKENS, V))
        target = torch.empty(TOKENS, device=device, dtype=torch.long)
        score_hidden_states(hidden, head, target)  # it may try once what the device can do
        launches.counts.clear()
        score_hidden_states(hidden, head, target)
    assert launches.counts["mm"] == TOKENS / 1024 <= 40
    assert launches.total <= 500


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """The dtypes and the memory of products' results."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name().startswith(("aten::mm", "aten::addmm")) and result.numel() > 256:
            self.results.append(result)
        return result


@pytest.mark.parametrize(
    ("dtype", "options", "rows"),
    [
        (torch.bfloat16, {}, 1024),
        (torch.bfloat16, {"workspace_bytes": 2**28}, 523),
        (torch.float32, {"workspace_bytes": 2**20}, 2),
        (torch.float64, {}, 1024),
        (torch.float32, {"workspace_bytes": 1}, 1),
    ],
)
def test_products_share_one_workspace_and_keep_their_accumulator(dtype, options, rows):
    with no_host_sync() as device, Products() as products:
        hidden, head = (
            torch.empty(3000 if rows > 2 else 7, 16, device=device, dtype=dtype),
            torch.empty(V, 16, device=device),
        )
        target = torch.empty(len(hidden), device=device, dtype=torch.long)
        score_hidden_states(hidden, head.to(dtype), target, **options)
    assert {len(product) for product in products.results} == {rows, len(hidden) % rows} - {0}
    assert {product.dtype for product in products.results} == {torch.promote_types(dtype, torch.float32)}
    assert len({id(product.untyped_storage()) for product in products.results}) == 1


@pytest.mark.parametrize("options", [{"logit_softcap": 30.0}, {"logit_scale": 2.0}, {"bias": None}])
def test_where_products_are_rounded_the_workspace_holds_half_precision(options, monkeypatch):
    monkeypatch.setattr("xent_metrics.scoring.linear.keeps_accumulator", lambda kind, dtype: False)
    with no_host_sync() as device, Products() as products:
        hidden, head = (torch.empty(rows, 16, device=device, dtype=torch.bfloat16) for rows in (3000, 100_000))
        options = {name: head[:, 0] if name == "bias" else value for name, value in options.items()}
        scores = score_hidden_states(hidden, head, torch.empty(3000, device=device, dtype=torch.long), **options)
    assert {product.dtype for product in products.results} == {torch.bfloat16}
    assert scores.nll.dtype == torch.float32
    assert max(map(len, products.results)) == (1342 if "bias" in options else 1024)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ((V, CPU, 4), 49),
        ((V, CPU, 4, 10), 49),
        ((2**30, CPU, 4), 1),
        ((V, CUDA, 4), 1024),
        ((V, CUDA, 2), 1046),
        ((1000, CUDA, 4), 67108),
        ((V, CUDA, 4, 2**30), 2092),
        ((V, CUDA, 4, 1), 1),
        ((0, CUDA, 4), 2**28),
    ],
)
def test_rows_of_a_product(given, rows):
    assert devices.matmul_rows(*given) == rows


def test_rows_of_a_chunk():
    assert [devices.chunk_rows(size, CPU) for size in (100, V, 2**30)] == [5242, 8, 8]
    assert [devices.chunk_rows(size, CUDA) for size in (100, V, 2**30)] == [503316, 392, 1]
    assert [devices.argmax_rows(size, CPU) for size in (100, 2**30)] == [2048, 2048]
    assert all(devices.argmax_rows(size, CUDA) * size < 2**31 for size in (1, 100, V, 2**30))


def test_chunks_are_consecutive_rows():
    pairs = list(devices.chunks(2, torch.arange(5), torch.arange(5) + 10))
    assert [(a.tolist(), b.tolist()) for a, b in pairs] == [([0, 1], [10, 11]), ([2, 3], [12, 13]), ([4], [14])]
    assert [rows.tolist() for rows in devices.split(torch.arange(6).reshape(3, 1, 2), 2)] == [
        [[0, 1], [2, 3]],
        [[4, 5]],
    ]
    assert [len(rows) for rows in devices.split(torch.zeros(3, 4, 2))] == [12]
    assert [len(rows) for rows in devices.split(torch.zeros(3, 4, 2)[:, :3])] == [3, 3, 3]
    assert list(devices.split(torch.zeros(0, 2))) == []


def test_half_precision_products_keep_their_accumulator_where_torch_can(monkeypatch):
    devices._can_keep_accumulator.cache_clear()
    with no_host_sync():
        assert devices.keeps_accumulator("cuda", torch.bfloat16)
        assert not devices.keeps_accumulator("cuda", torch.float32)
        devices._can_keep_accumulator.cache_clear()
        monkeypatch.setattr(torch, "mm", mock.Mock(side_effect=RuntimeError("not implemented")))  # another device
        assert not devices.keeps_accumulator("cuda", torch.float16)
    devices._can_keep_accumulator.cache_clear()
    assert not devices.keeps_accumulator("cpu", torch.bfloat16)
    assert not devices._can_keep_accumulator("cpu", torch.bfloat16)  # where torch raises


def test_the_widest_float(monkeypatch):
    assert devices.widest_float(CPU) == devices.widest_float(CUDA) == torch.float64
    assert devices.widest_float(torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    for has_fp64, widest in ((True, torch.float64), (False, torch.float32)):
        properties = SimpleNamespace(has_fp64=has_fp64)
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device, found=properties: found)
        assert devices.widest_float(torch.device("xpu")) == widest


def score_everything(device, dtype):
    """Every way of scoring, on tensors without data."""
    logits, target = (
        torch.empty(4, 6, 300, device=device, dtype=dtype),
        torch.empty(4, 6, device=device, dtype=torch.long),
    )
    vector = torch.empty(300, device=device)
    options = {
        "label_smoothing": 0.1,
        "weight": torch.empty(4, 6, device=device),
        "token_bytes": torch.empty(300, device=device, dtype=torch.long),
    }
    score_tokens(logits, target, extra_scores=EXTRA_SCORES, **options)
    score_tokens(logits, target, class_weight=vector, **options)
    score_tokens(logits, logits.softmax(-1), class_weight=vector, **options)
    score_tokens(logits[..., 0], logits[..., 0], binary="probabilities")
    score_tokens(logits[..., 0], target, binary="logits")
    score_pair(logits, logits, target, temperature=2.0)
    hidden, head = torch.empty(4, 6, 8, device=device, dtype=dtype), torch.empty(300, 8, device=device, dtype=dtype)
    for more in ({}, {"bias": vector}, {"logit_scale": 2.0, "logit_softcap": 30.0}, {"extra_scores": EXTRA_SCORES}):
        score_hidden_states(hidden, head, target, **options, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_float64_on_a_device_without_it(dtype):
    with no_float64() as device:
        score_everything(device, dtype)


def test_float64_of_the_host_comes_in_the_widest_float_of_the_device():
    weight, soft = np.ones(4), np.full((4, 9), 1 / 9)
    with no_float64() as device, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the copies wait
        logits, target = torch.empty(4, 9, device=device), torch.empty(4, device=device, dtype=torch.long)
        assert score_tokens(logits, target, weight=weight).weight.dtype == torch.float32
        assert score_tokens(logits, soft).nll.dtype == torch.float32
    scores = score_tokens(torch.zeros(4, 9), torch.zeros(4, dtype=torch.long), weight=weight)
    assert scores.weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_raises_under_deterministic_algorithms(dtype):
    with no_host_sync() as device, OnlyDeterministic(products=True):
        score_everything(device, dtype)


def test_what_raises_under_deterministic_algorithms_is_refused():
    with no_host_sync() as device, OnlyDeterministic():
        torch.empty(3, device=device, dtype=torch.long).cumsum(0)
        for refused in (lambda x: x.cumsum(0), lambda x: x.kthvalue(1), lambda x: x.median(0)):
            with pytest.raises(RuntimeError, match="has no deterministic implementation"):
                refused(torch.empty(3, device=device))
