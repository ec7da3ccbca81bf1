"""`HFForward` computes only the logits that are scored, in the requested dtypes."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.hf_model import (
    TEXT,
    choices,
    rolling,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM


def test_no_logits_of_a_whole_batch_are_made(lm, monkeypatch):
    """The head is never called, and only the positions of continuations are scored, each once."""
    seen = []
    score = lm.forward.score

    def watch(states, targets):
        seen.append(tuple(states.shape))
        return score(states, targets)

    def refuse(*args, **kwargs):
        raise AssertionError("lm_head ran on all positions")

    monkeypatch.setattr(lm.forward, "score", watch)
    monkeypatch.setattr(lm.model.lm_head, "forward", refuse)
    results = choices(lm)
    assert sum(rows for rows, _ in seen) == sum(len(result.scores) for result in results)
    assert {width for _, width in seen} == {lm.model.config.hidden_size}


def test_softmax_dtype_can_only_widen(build):
    [plain], [half], [wide] = (rolling(build(softmax_dtype=dtype), TEXT) for dtype in (None, "bfloat16", "float64"))
    assert plain.scores.nll.dtype == half.scores.nll.dtype == torch.float32
    assert wide.scores.nll.dtype == torch.float64
    assert plain == half == pytest.approx(wide, rel=1e-6)


def test_mixed_precision_runs_the_body_in_half(build, lm):
    mixed = build(mixed_precision_dtype="bfloat16")
    [half], [full] = rolling(mixed, TEXT), rolling(lm, TEXT)
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert half.scores.nll.dtype == torch.float32
    assert mixed.forward.packing


def test_models_without_a_head_for_tokens_are_refused(model, tokenizer):
    classifier = transformers.LlamaForSequenceClassification(model.config)
    for other in (model.model, classifier.eval()):
        with pytest.raises(InvalidInputError, match=f"{type(other).__name__} gives no logits of every position"):
            XentHFLM(pretrained=other, tokenizer=tokenizer)
