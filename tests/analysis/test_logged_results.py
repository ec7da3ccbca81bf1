"""Results of requests read back from a log, with every bit of their scores."""

from __future__ import annotations

import json
import math

import pytest
import torch

from xent_metrics import TokenScores, score_tokens
from xent_metrics.analysis.logged_results import results_in
from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer


def logged(scores: TokenScores):
    """The result read back from the JSON that is logged of these scores."""
    line = json.dumps(
        {"arguments": {"gen_args_0": {"arg_0": "text"}}, "resps": [[str(Results(ByteTokenizer()).rolling(scores))]]}
    )
    [result] = results_in(json.loads(line))
    return result


def check_same(found: TokenScores, scores: TokenScores):
    """Equal in every field that is logged, and in the dtype."""
    assert found.fields().keys() == scores.fields().keys()
    for name, value in scores.fields().items():
        assert found.fields()[name].dtype == value.dtype, name
        assert torch.equal(found.fields()[name].nan_to_num(-1), value.nan_to_num(-1)), name
    assert found.vocab_size == scores.vocab_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_json_carries_every_bit(rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    logits = 30 * torch.randn(rows, 257, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(256, (rows,), generator=generator)
    scores = score_tokens(logits, target, token_bytes=torch.ones(257, dtype=torch.long))
    check_same(logged(scores).scores(), scores)


def test_what_is_not_finite_or_invalid_stays_so():
    logits = torch.tensor([[0.0, -math.inf], [math.nan, 0.0], [0.0, 0.0]])
    scores = score_tokens(logits, torch.tensor([1, 0, 7]))
    assert scores.nll[0] == math.inf
    assert scores.invalid.tolist() == [False, False, True]
    check_same(logged(scores).scores(), scores)


def test_plain_results_have_a_loglikelihood_alone():
    raw = {
        "arguments": {
            "gen_args_0": {"arg_0": "q", "arg_1": {"until": []}},
            "gen_args_1": {"arg_0": "q", "arg_1": " a"},
        },
        "resps": [["generated"], [["-inf", "False"]]],
    }
    [result] = results_in(raw)
    assert (result.arguments, result.loglikelihood, result.logged) == (("q", " a"), -math.inf, None)


@pytest.mark.parametrize(
    "raw",
    [
        {"arguments": {}},
        {"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": []},
        {"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": [["not a number"]]},
        {"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": [['{"tokens": []}']]},
        {"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": [[]]},
        {"arguments": [1], "resps": [1]},
    ],
)
def test_results_that_cannot_be_read_are_refused(raw):
    with pytest.raises(ValueError, match="its results can't be read"):
        results_in(raw)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([{"id": 1, "nll": "x"}], "its tokens can't be read"),
        ([{"id": 1}], "its tokens can't be read: KeyError: 'nll'"),
        (
            [{"id": 1, "nll": 1.0, "correct": True}, {"id": 1, "nll": 1.0}],
            "its tokens can't be read: KeyError: 'correct'",
        ),
        ([{"id": 1e300, "nll": 2.0}], "its tokens can't be read"),
        (None, "its tokens can't be read"),
        ([{"id": 1, "nll": 1.0}], "its tokens don't add up to its loglikelihood -2.0"),
    ],
)
def test_damaged_tokens_are_named(tokens, message):
    text = json.dumps({"loglikelihood": -2.0, "dtype": "float32", "tokens": tokens})
    [result] = results_in({"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": [[text]]})
    with pytest.raises(ValueError, match=message):
        result.scores()


def test_tokens_without_a_dtype_are_refused():
    text = json.dumps({"loglikelihood": -1.0, "tokens": [{"id": 1, "nll": 1.0}]})
    [result] = results_in({"arguments": {"gen_args_0": {"arg_0": "t"}}, "resps": [[text]]})
    with pytest.raises(MissingScoreError, match="logged without `dtype`"):
        result.scores()
