"""Scores beside 50 digits, beside torch's own cross entropy, and at the extremes."""

from __future__ import annotations

import pytest
import torch
from support import reference
from torch.nn import functional as F

from xent_metrics import score_hidden_states, score_tokens

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def tolerance(dtype):
    return {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 3e-7, "atol": 1e-6}


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_fifty_digits(dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    scores = score_tokens(logits, target)
    for row, t, nll, confidence, correct in zip(
        logits.double().flatten(0, 1).tolist(),
        target.flatten().tolist(),
        scores.nll.flatten().tolist(),
        scores.confidence.flatten().tolist(),
        scores.correct.flatten().tolist(),
        strict=True,
    ):
        want = (
            (float(reference.nll(row, t)), float(max(reference.probabilities(row))), row.index(max(row)) == t)
            if t != -100
            else (0.0, 0.0, False)
        )
        tight = 1e-14 if dtype == torch.float64 else 1e-6
        assert (nll, confidence) == pytest.approx(want[:2], rel=tight, abs=tight)
        assert correct == want[2]


@pytest.mark.parametrize("vocab_size", [1, 2, 257, 1024, 1500, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nll_is_torchs_in_float64(dtype, vocab_size):
    """In float32, torch's own loses a digit on processors without AVX-512."""
    logits, target = (4 * torch.randn(4, 9, vocab_size)).to(dtype), torch.randint(vocab_size, (4, 9))
    target[0, :3] = -100
    scores = score_tokens(logits, target)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    want = (
        F.cross_entropy(wide.flatten(0, 1).double(), target.flatten(), reduction="none").view_as(target).to(wide.dtype)
    )
    torch.testing.assert_close(scores.nll, want, **tolerance(dtype))
    torch.testing.assert_close(scores.prob, torch.exp(-want))
    torch.testing.assert_close(
        scores.confidence,
        torch.where(target != -100, wide.double().softmax(-1).amax(-1).to(wide.dtype), 0),
        **tolerance(dtype),
    )
    assert torch.equal(scores.correct, logits.argmax(-1) == target)
    assert torch.equal(scores.counted, target != -100)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", ["none", "random", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_training_loss_is_torchs(dtype, weights, smoothing, soft):
    logits, target = (3 * torch.randn(20, 11)).to(dtype), torch.randint(11, (20,))
    target[:3] = -100
    class_weight = None if weights == "none" else torch.rand(11, dtype=dtype)
    if weights == "zeros":
        class_weight[::2] = 0
    if soft:
        target = torch.randn(20, 11, dtype=dtype).softmax(-1)
        target[0] = F.one_hot(torch.tensor(4), 11)
    if weights == "none" and not smoothing:
        scores = score_tokens(logits, target)
        assert scores.loss is None
        got = scores.nll
    else:
        scores = score_tokens(logits, target, label_smoothing=smoothing, class_weight=class_weight)
        got = scores.loss
        mean = got.sum() / scores.loss_weight.sum()
        want = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=smoothing)
        torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scores.nll, score_tokens(logits, target).nll, rtol=0, atol=0)
    want = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(got, want, **tolerance(dtype))


def test_the_training_loss_is_its_definition(batch):
    logits, target = batch
    class_weight = torch.arange(13, dtype=torch.float64) / 7
    scores = score_tokens(logits.double(), target, label_smoothing=0.2, class_weight=class_weight)
    want = reference.training_loss(logits.flatten(0, 1).tolist(), target.flatten().tolist(), 0.2, class_weight.tolist())
    assert float(scores.loss.sum() / scores.loss_weight.sum()) == pytest.approx(float(want), rel=1e-13)


def test_soft_targets_are_their_definition():
    logits = torch.randn(6, 5, dtype=torch.float64)
    target = torch.randn(6, 5, dtype=torch.float64).softmax(-1)
    target[0] = torch.tensor([0.0, 0, 1, 0, 0])
    scores = score_tokens(logits, target)
    want = reference.soft_cross_entropy(logits.tolist(), target.tolist())
    assert float(scores.nll.mean()) == pytest.approx(float(want), rel=1e-14)
    assert torch.equal(scores.correct, logits.argmax(-1) == target.argmax(-1))
    assert scores.target is None


def test_extremes():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0.0, 1e4], [1e4, 0], [0, -inf], [-inf, 0], [inf, 0], [0, inf], [-inf, -inf], [nan, 0]])
    scores = score_tokens(logits, torch.zeros(8, dtype=torch.long))
    want = F.cross_entropy(logits, torch.zeros(8, dtype=torch.long), reduction="none")
    assert torch.equal(scores.nll.nan_to_num(-1, posinf=-2), want.nan_to_num(-1, posinf=-2))
    assert scores.nll[:4].tolist() == [1e4, 0, 0, inf]
    assert scores.nll[4:].isnan().all()
    assert scores.correct.tolist() == [False, True, True, False, False, False, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_gap_is_a_large_nll(dtype):
    gap = 1e4 if dtype != torch.bfloat16 else 9984.0  # the nearest that bfloat16 has
    scores = score_tokens(torch.tensor([[0.0, gap, -gap]], dtype=dtype), torch.tensor([0]))
    assert scores.nll.item() == gap
    assert scores.confidence.item() == 1


def test_one_class_has_nothing_to_say():
    scores = score_tokens(torch.randn(2, 3, 1), torch.zeros(2, 3, dtype=torch.long))
    assert not scores.nll.any()
    assert scores.correct.all()
    assert (scores.confidence == 1).all()


def test_scores_follow_the_input_not_the_graph():
    logits = torch.randn(3, 4, requires_grad=True)
    assert not score_tokens(logits, torch.tensor([0, 1, 2])).nll.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"logit_scale": 0.3},
        {"logit_softcap": 2.0},
        {"bias": True, "logit_scale": 3.0, "logit_softcap": 5.0},
    ],
    ids=["plain", "bias", "scale", "softcap", "all"],
)
def test_hidden_states_score_as_their_logits(options, dtype):
    hidden, head = torch.randn(3, 7, 16).to(dtype), torch.randn(301, 16).to(dtype)
    target, bias = torch.randint(301, (3, 7)), torch.randn(301).to(dtype)
    target[0, 0] = -100
    options = dict(options) | ({"bias": bias} if "bias" in options else {})
    logits = F.linear(hidden, head, options.get("bias"))
    if options.keys() & {"logit_scale", "logit_softcap"}:
        logits = logits.to(torch.promote_types(dtype, torch.float32)) * options.get("logit_scale", 1.0)
        if cap := options.get("logit_softcap"):
            logits = cap * torch.tanh(logits / cap)
    got = score_hidden_states(hidden, head, target, token_bytes=torch.arange(301), **options)
    want = score_tokens(logits, target, token_bytes=torch.arange(301))
    for name, value in want.fields().items():
        torch.testing.assert_close(got.fields()[name], value, **tolerance(dtype))


def test_hidden_states_take_the_training_loss_and_any_strides(batch):
    hidden, head = torch.randn(3, 9, 16), torch.randn(13, 16)
    options = {"label_smoothing": 0.1, "class_weight": torch.rand(13)}
    got = score_hidden_states(hidden[:, :-1], head, batch[1], **options)
    want = score_tokens(hidden[:, :-1] @ head.T, batch[1], **options)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.loss_weight, want.loss_weight, rtol=0, atol=0)
