"""Scores of any logits against float64, extremes included."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from xent_metrics import score_hidden_states, score_tokens

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
inf, nan = float("inf"), float("nan")


@st.composite
def batches(draw):
    """Logits (N, V) of any dtype and scale, with equal, infinite and nan ones among them; targets, some of them no class."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, vocab_size = (
        draw(st.integers(1, 5)),
        draw(st.one_of(st.integers(1, 9), st.sampled_from([255, 256, 257, 1000]))),
    )
    scale = 10.0 ** draw(st.integers(-6, 4))
    logits = scale * torch.randn(rows, vocab_size, generator=generator, dtype=torch.float64)
    for special in draw(st.lists(st.sampled_from([0.0, inf, -inf, nan, 1e4, -1e4]), max_size=3)):
        logits[draw(st.integers(0, rows - 1)), draw(st.integers(0, vocab_size - 1))] = special
    target = torch.randint(-1, vocab_size + 1, (rows,), generator=generator)
    target[torch.rand(rows, generator=generator) < 0.2] = -100
    return logits.to(draw(st.sampled_from(DTYPES))), target


def reference(logits, target):
    """nll, confidence and correct of each row, by log_softmax in float64."""
    log_prob = torch.log_softmax(logits.double(), dim=-1)
    index = target.clamp(0, logits.shape[-1] - 1)[:, None]
    nll = -log_prob.gather(-1, index).squeeze(-1)
    return nll, log_prob.amax(-1).exp(), (logits.argmax(-1) == index[:, 0]) & ~nll.isnan()


@given(batches())
def test_scores_are_those_of_float64(batch):
    logits, target = batch
    scores = score_tokens(logits, target)
    counted, valid = target != -100, (target >= 0) & (target < logits.shape[-1])
    assert scores.invalid is not None
    assert scores.invalid.equal(counted & ~valid)
    assert scores.counted.equal(counted)
    nll, confidence, correct = (x[valid] for x in reference(logits, target))
    found = scores[valid]
    # An nll is a difference of two logits, rounded, plus a logarithm of at most V terms.
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    torch.testing.assert_close(found.nll.double(), nll, rtol=4 * eps, atol=32 * eps, equal_nan=True)
    torch.testing.assert_close(found.confidence.double(), confidence, rtol=32 * eps, atol=0.0, equal_nan=True)
    assert found.correct.equal(correct)
    assert (scores.nll[~counted] == 0).all()
    assert scores.nll[scores.invalid].isnan().all()


@given(batches())
def test_scores_of_hidden_states_are_those_of_their_logits(batch):
    """By a head of the identity, whose products are exact; zeros times infinities aren't."""
    logits, target = batch
    logits = logits.nan_to_num(0.0, 1e4, -1e4)
    head = torch.eye(logits.shape[-1], dtype=logits.dtype)
    found, want = score_hidden_states(logits, head, target), score_tokens(logits, target)
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    torch.testing.assert_close(found.nll, want.nll, rtol=4 * eps, atol=32 * eps, equal_nan=True)
    assert found.correct.equal(want.correct)


@given(batches(), st.randoms(use_true_random=False))
def test_a_rows_scores_do_not_depend_on_the_others(batch, chance):
    logits, target = batch
    order = list(range(len(logits)))
    chance.shuffle(order)
    whole, shuffled = score_tokens(logits, target), score_tokens(logits[order], target[order])
    torch.testing.assert_close(shuffled.nll, whole.nll[order], rtol=0, atol=0, equal_nan=True)
    alone = score_tokens(logits[order[0]], target[order[0]])
    torch.testing.assert_close(alone.nll, whole.nll[order[0]], rtol=0, atol=0, equal_nan=True)
