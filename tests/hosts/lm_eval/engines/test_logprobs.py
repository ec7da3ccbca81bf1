"""Token scores from an engine's two numbers per token, and numbers that can't be log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from xent_metrics import score_tokens
from xent_metrics.errors import EngineError
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs, check_logprobs, token_scores


def reported(logits, tokens):
    """What an exact engine reports about tokens whose logits, from the second on, are given."""
    row = logits.double().log_softmax(-1)
    own = [None, *row.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()]
    return TokenLogprobs(tuple(tokens), tuple(own), (None, *row.amax(-1).tolist()))


def test_scores_are_those_of_the_logits():
    logits, tokens, table = torch.randn(5, 9), [3, 8, 0, 2, 2, 7], torch.arange(9)
    scores = token_scores(reported(logits, tokens), 3, table, engine="e")
    expected = score_tokens(logits.double()[2:], torch.tensor(tokens[3:]), token_bytes=table)
    assert scores.nll.dtype == torch.float64
    for name in ("nll", "confidence"):
        torch.testing.assert_close(getattr(scores, name), getattr(expected, name), rtol=1e-14, atol=0)
    for name in ("correct", "target", "num_bytes", "counted"):
        assert torch.equal(getattr(scores, name), getattr(expected, name))
    assert not scores.broken.any()
    assert scores.row_kind == "token"


def test_uniform_probabilities_are_all_correct_and_cost_ln_v():
    uniform = (-math.log(4),) * 2
    scores = token_scores(TokenLogprobs((0, 1, 2), (None, *uniform), (None, *uniform)), 2, None, engine="e")
    assert scores.nll.tolist() == [math.log(4)] * 2
    assert scores.correct.all()
    assert scores.num_bytes is None


def test_a_certain_token_costs_nothing_and_has_no_minus_sign():
    scores = token_scores(TokenLogprobs((0, 1), (None, 0.0), (None, 0.0)), 1, None, engine="e")
    assert math.copysign(1, scores.nll.item()) == 1
    assert scores.confidence.item() == 1


def test_an_impossible_token_has_infinite_nll():
    scores = token_scores(TokenLogprobs((0, 1), (None, -math.inf), (None, -0.5)), 1, None, engine="e")
    assert scores.nll.item() == math.inf


@pytest.mark.parametrize(
    ("own", "largest", "message"),
    [
        ((None, None), (-1.0, -1.0), r"token 1 \(id 5\) of a prompt of 3 has no log-probability; .* none none −1\.00"),
        ((None, -1.0), (-1.0, None), "token 2 .* has no largest log-probability"),
        ((None, math.nan), (-1.0, -1.0), "has nan as its log-probability"),
        ((None, 0.5), (-1.0, -1.0), "has 0.5 as its log-probability"),
        ((None, -1.0), (-2.0, -1.0), "has the log-probability −?-1, more than the largest of its place, -2"),
        ((None, 0.0), (0.0, 0.0), "all 2 log-probabilities of a prompt are 0"),
    ],
)
def test_what_is_no_log_probability_is_an_error(own, largest, message):
    last = 0.0 if own[1] == 0.0 else -1.0
    found = TokenLogprobs((4, 5, 6), (*own, last), (None, *largest))
    with pytest.raises(EngineError, match=message):
        check_logprobs(found, 2, engine="e")


def test_what_is_not_scored_may_be_missing():
    check_logprobs(TokenLogprobs((4, 5, 6), (None, None, -1.0), (None, None, -1.0)), 1, engine="e")
