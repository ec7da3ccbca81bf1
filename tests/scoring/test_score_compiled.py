"""`torch.compile` traces scoring as one graph, once for all numbers of rows, also within a training step."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

from xent_metrics import score_hidden_states, score_tokens
from xent_metrics.metrics.distribution import entropy
from xent_metrics.scoring.scores import ExtraScore

V, H = 50, 8
ROWS = [6, 9, 17, 500, 3, 1000, 2]
HEAD, EMBEDDING = torch.randn(V, H, requires_grad=True), torch.randn(V, H, requires_grad=True)


def logits_of(n, *more):
    return torch.randn(n, *more, V), torch.randint(V, (n, *more))


def score(logits, target):
    scores = score_tokens(logits, target)
    return scores.nll, scores.confidence, scores.correct


def score_with_options(logits, target):
    extra_scores = {"entropy": ExtraScore(entropy)}
    scores = score_tokens(logits, target, label_smoothing=0.1, token_bytes=torch.arange(V), extra_scores=extra_scores)
    return scores.nll, scores.loss, scores.num_bytes, scores.extra_scores["entropy"]


def score_soft(logits, target):
    return score_tokens(logits, logits.flip(-1).softmax(-1)).nll


def score_states(hidden, target):
    scores = score_hidden_states(hidden, HEAD, target, logit_softcap=20.0)
    return scores.nll, scores.confidence, scores.correct


CASES = {
    "rows": (score, lambda n: logits_of(n)),
    "batches": (score, lambda n: logits_of(n, 4)),
    "options": (score_with_options, lambda n: logits_of(n)),
    "soft targets": (score_soft, lambda n: logits_of(n)),
    "hidden states": (score_states, lambda n: (torch.randn(n, H), torch.randint(V, (n,)))),
}


class Graphs:
    """A backend of `torch.compile` that counts the graphs that it gets."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return aot_eager(graph, inputs)


@pytest.fixture(autouse=True)
def _without_graphs_of_other_tests():
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES)
def test_the_second_number_of_rows_is_the_last_that_is_compiled(case):
    function, inputs = CASES[case]
    graphs = Graphs()
    compiled = torch.compile(function, fullgraph=True, backend=graphs)
    for n in ROWS:
        given = inputs(n)
        for got, want in zip(compiled(*given), function(*given), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert graphs.count == 2  # for the first number of rows, and for any


@pytest.mark.parametrize("of", ["logits", "hidden states"])
def test_a_training_step_that_scores_is_compiled_once_too(of):
    def step(ids):
        hidden = EMBEDDING[ids[:-1]]
        logits, target = F.linear(hidden, HEAD), ids[1:]
        loss = F.cross_entropy(logits, target)
        scores = score_tokens(logits, target) if of == "logits" else score_hidden_states(hidden, HEAD, target)
        return loss, scores.nll

    graphs = Graphs()
    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    for n in ROWS:
        EMBEDDING.grad = None
        loss, nll = compiled(torch.randint(V, (n + 1,)))
        loss.backward()
        assert not nll.requires_grad
        assert EMBEDDING.grad.abs().sum() > 0
        torch.testing.assert_close(nll.mean(), loss.detach(), rtol=1e-5, atol=1e-5)
    assert graphs.count == 2
