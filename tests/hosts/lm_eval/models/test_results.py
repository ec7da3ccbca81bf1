"""What models return to lm-eval: plain values that carry token scores."""

from __future__ import annotations

import pickle

import torch
from support.byte_model import ByteNet, pairs
from support.byte_model import rolling as rolling_requests
from support.hf_model import (
    TEXT,
    VOCAB,
    choices,
)
from torch.nn import functional as F

from xent_metrics import TokenScores
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood


def test_results_are_plain_values_with_scores(lm, model, tokenizer):
    result = choices(lm, [(TEXT[:40], TEXT[40:60])])[0]
    assert isinstance(result, ScoredLoglikelihood)
    loglikelihood, greedy = result
    assert type(loglikelihood) is float
    assert greedy is False
    context = tokenizer.encode(TEXT[:40])
    whole = tokenizer.encode(TEXT[:60])
    logits = model(torch.tensor([whole])).logits[0, len(context) - 1 : -1]
    target = torch.tensor(whole[len(context) :])
    scores = result.scores
    torch.testing.assert_close(scores.nll, F.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(scores.target, target)
    assert torch.equal(scores.correct, logits.argmax(-1) == target)
    torch.testing.assert_close(scores.confidence, logits.softmax(-1).amax(-1))
    assert int(scores.num_bytes.sum()) == len(TEXT[40:60].encode())
    assert scores.vocab_size == VOCAB


def test_results_pickle_alone(lm):
    """One choice's scores, not the batch that they were computed in."""
    results = choices(lm)
    tensors = [tensor for result in results for tensor in result.scores.fields().values()]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    again = pickle.loads(pickle.dumps(results[0]))
    assert again == results[0]
    assert torch.equal(again.scores.nll, results[0].scores.nll)


def test_scores_are_token_scores(lm):
    assert all(isinstance(result.scores, TokenScores) and result.scores.row_kind == "token" for result in choices(lm))


def test_values_pickle_with_their_scores():
    [value] = TorchLM(ByteNet()).loglikelihood_rolling(rolling_requests("abc"))
    [pair] = TorchLM(ByteNet()).loglikelihood(pairs(("a", "b")))
    for result in (value, pair):
        again = pickle.loads(pickle.dumps(result))
        assert again == result
        assert torch.equal(again.scores.nll, result.scores.nll)
