"""Each row is scored by itself: its bits don't depend on its batch, its chunk, strides or threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xent_metrics import ExtraScore, TokenScores, score_hidden_states, score_tokens
from xent_metrics.scoring.rows import first_argmax

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("vocab_size", [7, 2050])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_shapes_and_neighbours_change_no_bit(dtype, vocab_size):
    logits, target = torch.randn(4, 6, vocab_size).to(dtype), torch.randint(vocab_size, (4, 6))
    want = score_tokens(logits, target)
    padded = torch.cat([logits, torch.full_like(logits[:, :1], 7)], dim=1)
    by_class = logits.transpose(1, 2).contiguous()  # (B, V, T), as convolutions give it
    wide = torch.stack([logits, logits], dim=-1)[..., 1]
    others = {
        "shifted": score_tokens(padded[:, :-1], target),
        "class dimension transposed": score_tokens(by_class.transpose(1, 2), target),
        "every second": score_tokens(wide, target),
        "flat": score_tokens(logits.reshape(-1, vocab_size), target.reshape(-1)),
        "four dimensions": score_tokens(logits.reshape(2, 2, 6, vocab_size), target.reshape(2, 2, 6)),
        "time first": score_tokens(logits.transpose(0, 1), target.T),
    }
    for how, got in others.items():
        for name, value in want.fields().items():
            seen = got.fields()[name]
            seen = seen.T if how == "time first" else seen.reshape(4, 6)
            assert torch.equal(seen, value), (how, name)
    for i in range(4):
        for t in range(6):
            assert torch.equal(score_tokens(logits[i, t], target[i, t]).nll, want.nll[i, t])
    reordered = torch.randperm(24)
    again = score_tokens(logits.reshape(-1, vocab_size)[reordered], target.reshape(-1)[reordered])
    assert torch.equal(again.nll, want.nll.reshape(-1)[reordered])


@pytest.mark.parametrize("vocab_size", [3, 1023, 1024, 1025, 1536, 2047, 4099])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_ties_the_first_maximum_is_the_prediction(dtype, vocab_size):
    places = sorted({0, 1, 511, 512, 513, 1023, 1024, vocab_size - 2, vocab_size - 1} & set(range(vocab_size)))
    rows, firsts = [], []
    for i, first in enumerate(places):
        row = torch.randn(vocab_size).clamp(max=2)
        row[places[i:]] = 5.0
        rows.append(row)
        firsts.append(first)
    rows.append(torch.zeros(vocab_size))
    rows.append(torch.full((vocab_size,), -float("inf")).index_fill(0, torch.tensor(vocab_size - 1), 1.0))
    firsts += [0, vocab_size - 1]
    logits = torch.stack(rows).to(dtype)
    assert logits.argmax(-1).tolist() == firsts
    assert score_tokens(logits, torch.tensor(firsts)).correct.all()
    elsewhere = (torch.tensor(firsts) + 1) % vocab_size
    assert not score_tokens(logits, elsewhere).correct.any()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 0)])
def test_an_empty_batch_has_every_field(shape):
    scores = score_tokens(
        torch.zeros(*shape, 7), torch.zeros(shape, dtype=torch.long), token_bytes=torch.ones(7).long()
    )
    assert {value.shape for value in scores.fields().values()} == {torch.Size(shape)}
    full = score_tokens(torch.zeros(1, 7), torch.zeros(1, dtype=torch.long), token_bytes=torch.ones(7).long())
    assert scores.fields().keys() == full.fields().keys()


def test_ignored_rows_are_neutral_whatever_is_in_them():
    logits = torch.tensor([[0.0, 1, 2], [float("nan"), 1, 2]])
    scores = score_tokens(
        logits, torch.tensor([1, -100]), token_bytes=torch.tensor([5, 6, 7]), class_weight=torch.tensor([1.0, 2, 3])
    )
    for name, value in scores.fields().items():
        assert not value[1], name
    assert scores.num_bytes.tolist() == [6, 0]


def test_many_rows_pass_through_many_chunks():
    logits, target = torch.randn(700, 1100), torch.randint(1100, (700,))
    want = F.cross_entropy(logits.double(), target, reduction="none").float()
    torch.testing.assert_close(score_tokens(logits, target).nll, want, rtol=3e-7, atol=1e-6)
    hidden, head = torch.randn(130, 8), torch.randn(60_000, 8)
    target = torch.randint(60_000, (130,))
    want = F.cross_entropy((hidden @ head.T).double(), target, reduction="none").float()
    torch.testing.assert_close(score_hidden_states(hidden, head, target).nll, want, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_has_the_bits_that_it_has_among_others_on_any_number_of_threads(dtype):
    """torch shares the sum of a single row among its threads."""
    logits, target = (torch.randn(7, 150_001) * 3).to(dtype), torch.randint(150_001, (7,))
    alone, largest = [], {"largest": ExtraScore(lambda log_prob, index: log_prob.amax(-1))}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            alone.append(score_tokens(logits, target))
            alone.append(TokenScores.cat([score_tokens(logits[i : i + 1], target[i : i + 1]) for i in range(7)]))
            alone.append(TokenScores.cat([score_tokens(logits[i], target[i]).map(lambda x: x[None]) for i in range(7)]))
            alone.append(score_tokens(logits, target, extra_scores=largest))
            alone.append(score_tokens(logits[2:], target[2:], label_smoothing=0.1))
    finally:
        torch.set_num_threads(before)
    for scores in alone:
        start = 7 - len(scores)
        assert torch.equal(scores.nll, alone[0].nll[start:])
        assert torch.equal(scores.confidence, alone[0].confidence[start:])
        assert torch.equal(scores.correct, alone[0].correct[start:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [7, 2050])
def test_the_way_of_other_devices_gives_the_same_scores_and_bits_that_depend_on_the_row(dtype, vocab_size, monkeypatch):
    logits, target = (3 * torch.randn(60, vocab_size)).to(dtype), torch.randint(vocab_size, (60,))
    logits[::7, 5] = logits[::7, 2] = 20.0  # ties
    logits[3, 1], logits[4, 1], logits[5, 1] = torch.nan, torch.inf, -torch.inf
    target[:30] = logits[:30].argmax(-1)
    own = score_tokens(logits, target)
    monkeypatch.setattr("xent_metrics.scoring.rows._on_cpu", lambda logits: False)
    scores = score_tokens(logits, target)
    torch.testing.assert_close(scores.nll, own.nll, equal_nan=True, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.confidence, own.confidence, equal_nan=True, rtol=2e-6, atol=0)
    assert torch.equal(scores.correct, own.correct)
    monkeypatch.setattr("xent_metrics.scoring.devices._CPU_CHUNK", 1)
    monkeypatch.setattr("xent_metrics.scoring.devices._CPU_ARGMAX_ROWS", 9)
    for part in (score_tokens(logits, target), score_tokens(logits.flip(0), target.flip(0)).map(lambda x: x.flip(0))):
        for name, value in scores.fields().items():
            torch.testing.assert_close(part.fields()[name], value, equal_nan=True, rtol=0, atol=0)


def test_no_row_is_scored_on_another_device_than_its_logits():
    logits, target = torch.randn(4, 6, 300).half(), torch.randint(300, (4, 6))
    entropy = {"entropy": ExtraScore(lambda log_prob, index: -(log_prob.exp() * log_prob).sum(-1))}
    want = score_tokens(logits, target, extra_scores=entropy)
    with torch.device("meta"):  # a default device, as of `torch.set_default_device("cuda")`
        found = score_tokens(logits, target, extra_scores=entropy)
    assert found.nll.equal(want.nll)
    assert found.extra_scores["entropy"].equal(want.extra_scores["entropy"])


@pytest.mark.parametrize("vocab_size", [3, 5000])
def test_the_first_maximum_of_rows_elsewhere_is_one_per_row(vocab_size):
    assert first_argmax(torch.empty(7, vocab_size, device="meta")).shape == (7,)


def test_targets_that_are_distributions_leave_the_confidence_as_it_is(install):
    install()  # a backend takes no distributions, and its own last bit may differ
    logits, target = torch.randn(40, 7), torch.randint(7, (40,))
    ids, soft = score_tokens(logits, target), score_tokens(logits, F.one_hot(target, 7).float())
    assert torch.equal(soft.confidence, ids.confidence)
    assert torch.equal(soft.correct, ids.correct)
    torch.testing.assert_close(soft.nll, ids.nll, rtol=1e-6, atol=1e-6)
