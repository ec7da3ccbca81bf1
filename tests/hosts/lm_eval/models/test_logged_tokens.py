"""Tokens listed in lm-eval's samples."""

from __future__ import annotations

import json
import math
import pickle
import re

import pytest
import torch
from support.hf_model import (
    TEXT,
    choices,
    rolling,
)

from xent_metrics import score_tokens
from xent_metrics.hosts.lm_eval.models import logged_tokens
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results


def test_samples_list_tokens_when_asked(build, lm, tokenizer):
    from lm_eval.utils import sanitize_list

    logged = build(log_tokens=True)
    pair = (TEXT[:40], " «Größe» 四")
    result, plain = choices(logged, [pair])[0], choices(lm, [pair])[0]
    assert result == plain
    first, greedy = sanitize_list([[result]])[0][0]  # what lm-eval writes
    sample = json.loads(first)
    assert (sample["loglikelihood"], greedy) == (plain[0], str(plain[1]))
    tokens = sample["tokens"]
    assert "".join(token["text"] for token in tokens) == pair[1]
    assert [token["id"] for token in tokens] == plain.scores.target.tolist()
    assert [token["nll"] for token in tokens] == plain.scores.nll.tolist()
    assert [token["confidence"] for token in tokens] == plain.scores.confidence.tolist()
    assert [token["correct"] for token in tokens] == plain.scores.correct.tolist()
    assert (sample["dtype"], sample["vocab_size"]) == ("float32", plain.scores.vocab_size)
    assert sum(token["num_bytes"] for token in tokens) == len(pair[1].encode())
    for token in tokens:
        texts, probabilities = zip(*token["alternatives"], strict=True)
        assert len(texts) == 5
        assert list(probabilities) == sorted(probabilities, reverse=True)
        assert all(probability == round(probability, 3) for probability in probabilities)
        if (share := math.exp(-token["nll"])) > probabilities[-1] + 0.001 and token["text"]:
            assert share == pytest.approx(dict(token["alternatives"])[token["text"]], abs=0.00051)

    [rolled] = rolling(logged, TEXT)
    sample = json.loads(sanitize_list([[rolled]])[0][0])
    assert "".join(token["text"] for token in sample["tokens"]) == TEXT
    assert rolled == rolling(lm, TEXT)[0]
    for value in (result, rolled):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert str(again) == str(value)


@pytest.mark.parametrize("invalid", [False, True])
def test_invalid_targets_are_marked_where_there_are_any(invalid, tokenizer):
    scores = score_tokens(torch.zeros(2, 8), torch.tensor([1, 9 if invalid else 2]))
    tokens = json.loads(str(Results(tokenizer).rolling(scores)))["tokens"]
    assert [token.get("invalid") for token in tokens] == ([False, True] if invalid else [None, None])


def test_samples_stay_numbers_when_not_asked(lm):
    assert re.fullmatch(r"-\d+\.\d+", str(choices(lm)[0][0]))
    assert re.fullmatch(r"-\d+\.\d+", str(rolling(lm, TEXT)[0]))


@pytest.mark.parametrize("log", [False, True])
def test_a_rolling_result_is_a_pair_where_lm_eval_expects_one(log, tokenizer, monkeypatch):
    scores = score_tokens(torch.zeros(2, 8), torch.tensor([1, 2]))
    results = Results(tokenizer if log else None)
    plain = results.rolling(scores)
    monkeypatch.setattr(logged_tokens, "IS_0_4", False)
    pair = results.rolling(scores)
    assert (*pair,) == (float(plain), False)
    assert pair.scores.nll.tolist() == plain.scores.nll.tolist()
