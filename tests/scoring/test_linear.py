"""Scores by blocks of the vocabulary, compared with whole rows in float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from xent_metrics import score_hidden_states
from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring import linear, score

V, H = 1300, 8  # two whole blocks of 512 and a short one


def reference(logits, target):
    log_prob = torch.log_softmax(logits.double(), dim=-1)
    return -log_prob.gather(-1, target[:, None]).squeeze(-1), log_prob.amax(-1).exp()


@pytest.fixture(autouse=True)
def _narrow_blocks(monkeypatch):
    monkeypatch.setattr(linear, "_BLOCK", 1)  # a block is 512 wide


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_join_to_the_whole_row(scale, dtype):
    torch.manual_seed(0)
    hidden, head, bias = (
        torch.randn(40, H, dtype=dtype),
        scale * torch.randn(V, H, dtype=dtype),
        torch.randn(V, dtype=dtype),
    )
    target = torch.randint(V, (40,))
    logits = F.linear(hidden.double(), head.double(), bias.double())
    target[:20] = logits[:20].argmax(-1)
    nll, confidence = reference(logits, target)
    scores = score_hidden_states(hidden, head, target, bias=bias)
    bound = 1e-10 if dtype == torch.float64 else 2e-6 * max(1.0, scale)
    assert float((scores.nll - nll).abs().max()) <= bound
    assert float((scores.confidence - confidence).abs().max()) <= bound
    assert torch.equal(scores.correct, logits.argmax(-1) == target)


def test_scale_and_softcap_come_before_the_join():
    torch.manual_seed(1)
    hidden, head, target = torch.randn(9, H), 10 * torch.randn(V, H), torch.randint(V, (9,))
    logits = 5 * torch.tanh(0.5 * (hidden.double() @ head.double().T) / 5)
    scores = score_hidden_states(hidden, head, target, logit_scale=0.5, logit_softcap=5.0)
    torch.testing.assert_close(scores.nll.double(), reference(logits, target)[0], atol=2e-6, rtol=1e-6)


def test_a_small_loss_keeps_its_digits_beside_a_large_logit():
    head = torch.zeros(V, H)
    head[700, 0], head[3, 0] = 1e4, 1e4 - 10
    scores = score_hidden_states(torch.eye(1, H), head, torch.tensor([700]))
    expected = torch.tensor(-10.0, dtype=torch.float64).exp().log1p()
    torch.testing.assert_close(scores.nll[0].double(), expected, rtol=1e-3, atol=0)


def test_the_first_of_equal_maxima_is_the_greedy_one():
    head = torch.zeros(V, H)
    head[[600, 1100], 0] = 2.0
    scores = score_hidden_states(torch.eye(1, H).repeat(2, 1), head, torch.tensor([600, 1100]))
    assert scores.correct.tolist() == [True, False]
    assert scores.nll[0] == scores.nll[1]


def test_a_block_of_impossible_classes_adds_nothing():
    bias = torch.zeros(V)
    bias[:512] = -torch.inf
    scores = score_hidden_states(torch.zeros(2, H), torch.zeros(V, H), torch.tensor([5, 600]), bias=bias)
    assert scores.nll[0] == torch.inf
    torch.testing.assert_close(scores.nll[1], torch.tensor(float(V - 512)).log())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value):
    bias = torch.zeros(V)
    bias[900] = value
    scores = score_hidden_states(torch.zeros(1, H), torch.zeros(V, H), torch.tensor([5]), bias=bias)
    assert scores.nll.isnan().all()
    assert not scores.correct.any()


def test_ignored_and_invalid_targets_are_as_with_whole_rows(monkeypatch):
    torch.manual_seed(2)
    hidden, head, target = torch.randn(2, 3, H), torch.randn(V, H), torch.tensor([[5, -100, V], [-1, 7, 1299]])
    blocks = score_hidden_states(hidden, head, target)
    monkeypatch.setattr(score, "prefers_blocks", lambda head, plan: False)
    rows = score_hidden_states(hidden, head, target)
    for name, value in rows.fields().items():
        torch.testing.assert_close(blocks.fields()[name], value, equal_nan=True, atol=2e-6, rtol=1e-6)


def test_transformed_and_fake_tensors_are_scored_too():
    """No shape may depend on values there."""
    hidden, head, target = torch.randn(3, 5, H), torch.randn(V, H), torch.randint(V, (3, 5))
    target[0] = F.linear(hidden[0], head).argmax(-1)
    expected = score_hidden_states(hidden, head, target)
    for name in ("nll", "correct"):
        found = torch.vmap(lambda rows, ids, name=name: getattr(score_hidden_states(rows, head, ids), name))(
            hidden, target
        )
        torch.testing.assert_close(found, getattr(expected, name))
    with FakeTensorMode() as mode:
        fake = score_hidden_states(*(mode.from_tensor(given) for given in (hidden, head, target)))
    assert fake.correct.shape == (3, 5)


@pytest.mark.parametrize(
    ("hidden", "head", "options", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(5, 4),
            {},
            r"hidden_states \(…, H\) and lm_head_weight \(V, H\) with V ≥ 1; got \(2, 3\) and \(5, 4\)",
        ),
        (torch.zeros(2, 3), torch.zeros(3), {}, r"got \(2, 3\) and \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(0, 3), {}, r"with V ≥ 1; got \(2, 3\) and \(0, 3\)"),
        (torch.zeros(2, 3).long(), torch.zeros(5, 3), {}, r"expected hidden_states of dtype .* got torch\.int64"),
        (torch.zeros(2, 3), torch.zeros(5, 3).to(torch.float8_e4m3fn), {}, r"lm_head_weight of dtype .*float8_e4m3fn"),
        (
            torch.zeros(2, 3),
            torch.zeros(5, 3),
            {"logit_softcap": 0.0},
            r"positive and finite; got 0\.0\. Pass None for no",
        ),
        (torch.zeros(2, 3), torch.zeros(5, 3), {"logit_softcap": float("inf")}, "positive and finite; got inf"),
        (
            torch.zeros(2, 3),
            torch.zeros(5, 3),
            {"logit_scale": float("nan")},
            "logit_scale is a finite number; got nan",
        ),
        (torch.zeros(2, 3), torch.zeros(5, 3), {"bias": torch.zeros(4)}, r"expected bias \(V,\) = \(5,\); got \(4,\)"),
    ],
)
def test_hidden_states_that_do_not_fit_say_why(hidden, head, options, message):
    with pytest.raises(InvalidInputError, match=message):
        score_hidden_states(hidden, head, torch.zeros(2, dtype=torch.long), **options)


@pytest.mark.parametrize("given", [{}, {"bias": torch.zeros(3)}, {"scale": 2.0}, {"softcap": 30.0}])
def test_a_head_with_anything_beside_its_weight_is_not_plain(given):
    head = linear.LMHead(torch.eye(3), **given)
    assert head.plain is (not given)
    assert head.classes(slice(1, 3)).plain is head.plain
