"""Results through JSON keep their type and every bit."""

import json
import math

import pytest
import torch

from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedLoglikelihood, LoggedRolling
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling, ScoredText
from xent_metrics.hosts.lm_eval.models.stored_results import result_of, stored
from xent_metrics.scoring.scores import TokenScores

NLL = torch.tensor([0.1, math.inf, math.nan, 5e-45])
SCORES = TokenScores(
    nll=NLL, counted=torch.tensor([True, True, False, True]), confidence=NLL.double(), correct=NLL > 1,
    target=torch.arange(4), num_bytes=torch.arange(4), invalid=NLL.isnan(), vocab_size=7, ignore_index=-100,
    extra_scores={"likeliest": torch.arange(24.0).reshape(4, 2, 3)},
)  # fmt: skip
EMPTY = TokenScores.empty(("confidence", "correct", "target", "num_bytes"))
TOKENS = [{"text": "é", "id": 3, "alternatives": [("a", 0.5)]}]


def through_json(result):
    return result_of(json.loads(json.dumps(stored(result))))


def same_scores(a, b):
    assert (a.row_kind, a.vocab_size, a.ignore_index, a.replicas) == (
        b.row_kind,
        b.vocab_size,
        b.ignore_index,
        b.replicas,
    )
    for left, right in ((a.fields(), b.fields()), (a.extra_scores, b.extra_scores)):
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
            assert torch.equal(tensor.contiguous().view(torch.uint8), right[name].contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("scores", [SCORES, EMPTY], ids=["scores", "empty"])
@pytest.mark.parametrize("made", [ScoredLoglikelihood, ScoredRolling])
def test_scored_results(made, scores):
    found = through_json(made(scores))
    assert (type(found), repr(found)) == (made, repr(made(scores)))
    same_scores(found.scores, scores)


@pytest.mark.parametrize("made", [LoggedLoglikelihood, LoggedRolling])
def test_logged_results(made):
    result = made(SCORES[:1], TOKENS)
    found = through_json(result)
    listed = (found[0], result[0]) if made is LoggedLoglikelihood else (found, result)
    assert (type(found), str(listed[0])) == (made, str(listed[1]))


def test_texts():
    found = through_json(ScoredText("so\ud800 é", ScoredLoglikelihood(SCORES)))
    assert (type(found), found) == (ScoredText, "so\ud800 é")
    same_scores(found.loglikelihood.scores, SCORES)
    assert through_json("plain") == "plain"


@pytest.mark.parametrize("result", [(-0.1, True), (-math.inf, False), -1e-300, 0.0])
def test_results_of_stock_models(result):
    assert through_json(result) == result


@pytest.mark.parametrize("result", [None, {"a": 1}, (1.0, 2.0, 3.0), b"bytes"])
def test_what_is_no_result(result):
    with pytest.raises(TypeError, match="is no result"):
        stored(result)


def test_scores_of_an_unknown_dtype():
    odd = TokenScores(nll=torch.ones(1), counted=torch.ones(1, dtype=torch.bool), correct=torch.ones(1, dtype=torch.bool),
                      extra_scores={"odd": torch.ones(1, dtype=torch.complex64)})  # fmt: skip
    with pytest.raises(TypeError, match=r"scores of torch\.complex64"):
        stored(ScoredLoglikelihood(odd))
