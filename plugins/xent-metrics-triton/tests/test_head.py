"""Scores of hidden states: by blocks of rows in a workspace and fused, against float64."""

from __future__ import annotations

import warnings

import pytest
import torch
import xent_metrics_triton as plugin
from torch.nn import functional as F
from xent_metrics_triton import fused
from xent_metrics_triton import head as heads

from xent_metrics.metrics import distribution, ranking
from xent_metrics.scoring.linear import LMHead
from xent_metrics.scoring.scores import ExtraScore

ENTROPY, RANK = ExtraScore(distribution.entropy), ExtraScore(ranking.target_rank, of="logits")
SQUARED_ERROR = ExtraScore(distribution.squared_error)
OPTIONS = [{}, {"bias": True}, {"scale": 0.25, "softcap": 5.0}, {"bias": True, "scale": 2.0, "softcap": 30.0}]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def blocks_of_eight(monkeypatch):
    monkeypatch.setattr(heads, "BLOCK_ROWS", 8)
    monkeypatch.setattr(heads, "_FEWEST_ROWS", 2)
    heads._warn_of_memory.cache_clear()


@pytest.fixture
def tiny(monkeypatch):
    """Fused tiles of 16 classes, so that few classes have many parts."""
    for size, sizes in fused.SIZES.items():
        monkeypatch.setitem(fused.SIZES, size, {**sizes, "ROWS": 16, "CLASSES": 16, "DEPTH": 16})
    monkeypatch.setattr(fused, "TILES", 2)


def batch(num_rows, vocab_size, width, dtype, bias=False, **shape):
    weight = torch.randn(vocab_size, width).to(dtype)
    head = LMHead(weight, torch.randn(vocab_size).to(dtype) if bias else None, **shape)
    return torch.randn(num_rows, width).to(dtype), head, torch.randint(vocab_size, (num_rows,))


def exact_logits(hidden, head):
    logits = F.linear(hidden.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    logits = logits * (1.0 if head.scale is None else head.scale)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def assert_close(found, hidden, head, target) -> None:
    """Float32 products of numbers around 1 are off by some 1e-6."""
    logits = exact_logits(hidden, head)
    nll, confidence, correct, extras = found
    torch.testing.assert_close(nll.double(), F.cross_entropy(logits, target, reduction="none"), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(confidence.double(), logits.softmax(-1).amax(-1), rtol=2e-5, atol=1e-9)
    assert torch.equal(correct, logits.argmax(-1) == target)
    log_prob = logits.log_softmax(-1)
    for name, value in extras.items():
        expected = {"entropy": distribution.entropy, "squared_error": distribution.squared_error}.get(name)
        if expected is None:
            assert torch.equal(value, ranking.target_rank(logits, target))
        else:
            torch.testing.assert_close(value.double(), expected(log_prob, target), rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("blocks_of_eight", "small")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_blocks_agree_with_float64(options, dtype):
    hidden, head, target = batch(11, 150, 20, dtype, **options)
    target[::2] = exact_logits(hidden, head)[::2].argmax(-1)
    found = plugin.linear_cross_entropy_backend(
        hidden, head, target, {"entropy": ENTROPY, "rank": RANK, "squared_error": SQUARED_ERROR}
    )
    assert_close(found, hidden, head, target)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fused_agrees_with_float64(options, dtype, monkeypatch):
    monkeypatch.setenv("XENT_METRICS_TRITON_HEAD", "fused")
    hidden, head, target = batch(19, 150, 20, dtype, **options)
    target[::2] = exact_logits(hidden, head)[::2].argmax(-1)
    monkeypatch.setattr(heads, "score_by_blocks", None)
    found = plugin.linear_cross_entropy_backend(
        hidden, head, target, {"entropy": ENTROPY, "squared_error": SQUARED_ERROR}
    )
    assert_close(found, hidden, head, target)


@pytest.mark.usefixtures("tiny")
def test_fused_has_torch_s_rules_at_the_extremes(monkeypatch):
    monkeypatch.setenv("XENT_METRICS_TRITON_HEAD", "fused")
    hidden, head, target = batch(5, 40, 3, torch.float32)
    head.weight[[7, 20, 33]] = head.weight[7].abs() + 9  # equal in each row of equal numbers, two of them in one part …
    hidden[:] = hidden.abs()
    hidden[1, 0], hidden[2, 0] = torch.nan, torch.inf
    nll, confidence, correct, _ = plugin.linear_cross_entropy_backend(hidden, head, torch.tensor([7, 7, 7, 33, 7]), {})
    assert nll.isnan().tolist() == [False, True, True, False, False]
    assert confidence.isnan().tolist() == [False, True, True, False, False]
    assert correct.tolist() == [True, False, False, False, True]  # … of which the first is the top
    none = LMHead(torch.full((40, 3), -torch.inf))
    assert plugin.linear_cross_entropy_backend(hidden[:1], none, target[:1], {})[0].isnan().all()


@pytest.mark.usefixtures("blocks_of_eight", "small")
def test_every_product_has_the_same_shape(monkeypatch):
    shapes, multiply = set(), heads._multiply

    def recording(states, weight, out):
        shapes.add((tuple(states.shape), tuple(weight.shape), tuple(out.shape)))
        return multiply(states, weight, out)

    monkeypatch.setattr(heads, "_multiply", recording)
    hidden, head, target = batch(19, 40, 6, torch.bfloat16)
    for rows in (1, 7, 8, 9, 19):
        assert plugin.linear_cross_entropy_backend(hidden[:rows], head, target[:rows], {})[0].shape == (rows,)
    assert shapes == {((8, 6), (40, 6), (8, 40))}


@pytest.mark.usefixtures("blocks_of_eight", "small", "tiny")
def test_without_memory_blocks_are_halved_and_then_there_are_none(monkeypatch):
    hidden, head, target = batch(11, 40, 6, torch.float32)
    tried, by_blocks = [], heads.score_by_blocks

    def scarce(fits):
        def score_by_blocks(hidden, head, target, wanted, rows):
            tried.append(rows)
            if rows > fits:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return by_blocks(hidden, head, target, wanted, rows)

        return score_by_blocks

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")  # of older interpreters about numpy
        warnings.simplefilter("always", UserWarning)
        for fits, expected in ((8, [8]), (2, [8, 4, 2]), (0, [8, 4, 2])):
            monkeypatch.setattr(heads, "score_by_blocks", scarce(fits))
            assert_close(plugin.linear_cross_entropy_backend(hidden, head, target, {}), hidden, head, target)
            assert tried == expected
            assert len(said) == (fits < 8)  # once
            tried.clear()
    assert "no memory for the logits of 8 rows of hidden states, and goes on with fewer" in str(said[0].message)
    assert plugin.linear_cross_entropy_backend(hidden, head, target, {"rank": RANK}) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads.fused, "score_fused", lambda *given: pytest.fail("blocks were to fit"))
        monkeypatch.setattr(heads, "score_by_blocks", scarce(4))
        assert plugin.linear_cross_entropy_backend(hidden, head, target, {"rank": RANK}) is not None


def test_without_memory_even_for_the_fused_kernel_torch_goes_on(monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(heads.fused, "score_fused", full)
    monkeypatch.setenv("XENT_METRICS_TRITON_HEAD", "fused")
    assert plugin.linear_cross_entropy_backend(*batch(3, 10, 4, torch.float32), {}) is None


def test_what_it_does_not_take_is_left_to_torch():
    hidden, head, target = batch(3, 10, 4, torch.float32)
    assert (
        plugin.linear_cross_entropy_backend(hidden, head, target, {"mine": ExtraScore(lambda rows, index: index)})
        is None
    )
    assert plugin.linear_cross_entropy_backend(hidden.bfloat16(), head, target, {}) is None
    assert plugin.linear_cross_entropy_backend(hidden, head, target.int(), {}) is None
    double = LMHead(head.weight.double())
    assert plugin.linear_cross_entropy_backend(hidden.double(), double, target, {}) is None
    elsewhere = LMHead(head.weight.to("meta"))
    assert plugin.linear_cross_entropy_backend(hidden, elsewhere, target, {}) is None
