"""Scores of logits: against 50 digits, against torch's own cross entropy, at the extremes, and what can't be scored."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from support import reference
from torch.nn import functional as F

from xent_metrics import CrossEntropy, ExtraScore, TokenScores, score_hidden_states, score_tokens
from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.rows import RowScorer
from xent_metrics.scoring.score import as_tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INT_DTYPES = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]


def tolerance(dtype):
    return {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 3e-7, "atol": 1e-6}


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_fifty_digits(dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    scores = score_tokens(logits, target)
    for row, t, nll, confidence, correct in zip(
        logits.double().flatten(0, 1).tolist(),
        target.flatten().tolist(),
        scores.nll.flatten().tolist(),
        scores.confidence.flatten().tolist(),
        scores.correct.flatten().tolist(),
        strict=True,
    ):
        want = (
            (float(reference.nll(row, t)), float(max(reference.probabilities(row))), row.index(max(row)) == t)
            if t != -100
            else (0.0, 0.0, False)
        )
        tight = 1e-14 if dtype == torch.float64 else 1e-6
        assert (nll, confidence) == pytest.approx(want[:2], rel=tight, abs=tight)
        assert correct == want[2]


@pytest.mark.parametrize("vocab_size", [1, 2, 257, 1024, 1500, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nll_is_torchs_in_float32_or_wider(dtype, vocab_size):
    logits, target = (4 * torch.randn(4, 9, vocab_size)).to(dtype), torch.randint(vocab_size, (4, 9))
    target[0, :3] = -100
    scores = score_tokens(logits, target)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    want = F.cross_entropy(wide.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    torch.testing.assert_close(scores.nll, want, **tolerance(dtype))
    torch.testing.assert_close(scores.prob, torch.exp(-want))
    torch.testing.assert_close(
        scores.confidence, torch.where(target != -100, wide.softmax(-1).amax(-1), 0), **tolerance(dtype)
    )
    assert torch.equal(scores.correct, logits.argmax(-1) == target)
    assert torch.equal(scores.counted, target != -100)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", ["none", "random", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_training_loss_is_torchs(dtype, weights, smoothing, soft):
    logits, target = (3 * torch.randn(20, 11)).to(dtype), torch.randint(11, (20,))
    target[:3] = -100
    class_weight = None if weights == "none" else torch.rand(11, dtype=dtype)
    if weights == "zeros":
        class_weight[::2] = 0
    if soft:
        target = torch.randn(20, 11, dtype=dtype).softmax(-1)
        target[0] = F.one_hot(torch.tensor(4), 11)
    if weights == "none" and not smoothing:
        scores = score_tokens(logits, target)
        assert scores.loss is None
        got = scores.nll
    else:
        scores = score_tokens(logits, target, label_smoothing=smoothing, class_weight=class_weight)
        got = scores.loss
        mean = got.sum() / scores.loss_weight.sum()
        want = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=smoothing)
        torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scores.nll, score_tokens(logits, target).nll, rtol=0, atol=0)
    want = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(got, want, **tolerance(dtype))


def test_the_training_loss_is_its_definition(batch):
    logits, target = batch
    class_weight = torch.arange(13, dtype=torch.float64) / 7
    scores = score_tokens(logits.double(), target, label_smoothing=0.2, class_weight=class_weight)
    want = reference.training_loss(logits.flatten(0, 1).tolist(), target.flatten().tolist(), 0.2, class_weight.tolist())
    assert float(scores.loss.sum() / scores.loss_weight.sum()) == pytest.approx(float(want), rel=1e-13)


def test_soft_targets_are_their_definition():
    logits = torch.randn(6, 5, dtype=torch.float64)
    target = torch.randn(6, 5, dtype=torch.float64).softmax(-1)
    target[0] = torch.tensor([0.0, 0, 1, 0, 0])
    scores = score_tokens(logits, target)
    want = reference.soft_cross_entropy(logits.tolist(), target.tolist())
    assert float(scores.nll.mean()) == pytest.approx(float(want), rel=1e-14)
    assert torch.equal(scores.correct, logits.argmax(-1) == target.argmax(-1))
    assert scores.target is None


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


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :-1], lambda x: x.transpose(0, 1), lambda x: x[:, -1:], lambda x: x[::2, 1:3], lambda x: x.mT],
    ids=["shifted", "time first", "last", "every second", "classes first"],
)
def test_logits_are_never_copied_whole(view, monkeypatch):
    logits, seen, add = torch.randn(4, 6, 9), [], RowScorer.add
    monkeypatch.setattr(RowScorer, "add", lambda self, rows: (seen.append(rows), add(self, rows))[1])
    strided = view(logits)
    score_tokens(strided, torch.zeros(strided.shape[:-1], dtype=torch.long))
    assert {rows.untyped_storage().data_ptr() for rows in seen} == {logits.untyped_storage().data_ptr()}
    assert torch.equal(torch.cat(seen), strided.reshape(-1, strided.shape[-1]))


@pytest.mark.parametrize("dtype", INT_DTYPES)
def test_every_integer_dtype_is_a_target(dtype):
    logits, target = torch.randn(5, 6), torch.tensor([0, 5, 3, 1, 2])
    assert torch.equal(score_tokens(logits, target.to(dtype)).nll, score_tokens(logits, target).nll)


def test_any_class_or_none_may_be_ignored():
    logits, target = torch.randn(4, 6), torch.tensor([0, 5, 3, 0])
    assert score_tokens(logits, target, ignore_index=0).counted.tolist() == [False, True, True, False]
    assert score_tokens(logits, target, ignore_index=99).counted.all()


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


def test_extremes():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0.0, 1e4], [1e4, 0], [0, -inf], [-inf, 0], [inf, 0], [0, inf], [-inf, -inf], [nan, 0]])
    scores = score_tokens(logits, torch.zeros(8, dtype=torch.long))
    want = F.cross_entropy(logits, torch.zeros(8, dtype=torch.long), reduction="none")
    assert torch.equal(scores.nll.nan_to_num(-1, posinf=-2), want.nan_to_num(-1, posinf=-2))
    assert scores.nll[:4].tolist() == [1e4, 0, 0, inf]
    assert scores.nll[4:].isnan().all()
    assert scores.correct.tolist() == [False, True, True, False, False, False, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_gap_is_a_large_nll(dtype):
    gap = 1e4 if dtype != torch.bfloat16 else 9984.0  # the nearest that bfloat16 has
    scores = score_tokens(torch.tensor([[0.0, gap, -gap]], dtype=dtype), torch.tensor([0]))
    assert scores.nll.item() == gap
    assert scores.confidence.item() == 1


def test_one_class_has_nothing_to_say():
    scores = score_tokens(torch.randn(2, 3, 1), torch.zeros(2, 3, dtype=torch.long))
    assert not scores.nll.any()
    assert scores.correct.all()
    assert (scores.confidence == 1).all()


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


def test_targets_out_of_range_and_non_distributions_are_marked():
    scores = score_tokens(torch.zeros(5, 4), torch.tensor([0, 4, -1, -100, 10**12]))
    assert scores.invalid.tolist() == [False, True, True, False, True]
    assert scores.nll.isnan().tolist() == [False, True, True, False, True]
    assert not scores.correct[1:].any()
    soft = torch.tensor([[0.5, 0.5], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [0.0, 0.0]])
    assert score_tokens(torch.zeros(5, 2), soft).invalid.tolist() == [False, True, True, True, True]
    for dtype in DTYPES:
        assert not score_tokens(torch.zeros(1, 1000), torch.rand(1, 1000).softmax(-1).to(dtype)).invalid.any()


def test_scores_follow_the_input_not_the_graph():
    logits = torch.randn(3, 4, requires_grad=True)
    assert not score_tokens(logits, torch.tensor([0, 1, 2])).nll.requires_grad


class DLPackOnly:
    """An array of another framework: nothing but the protocol."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def _read_only(tensor):
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "kind",
    [
        torch.Tensor.numpy,
        _read_only,
        lambda tensor: np.flip(tensor.flip(0).numpy(), 0),
        lambda tensor: np.asfortranarray(tensor.numpy()),
        DLPackOnly,
        torch.Tensor.tolist,
    ],
    ids=["numpy", "read-only", "negative strides", "fortran", "dlpack", "list"],
)
def test_other_frameworks_arrays_are_taken_as_they_are(kind, batch):
    logits, target = batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = score_tokens(kind(logits), kind(target), weight=kind(target.abs() + 1))
        assert torch.equal(got.nll, score_tokens(logits, target).nll)
        assert torch.equal(got.weight, target.abs() + 1)
        head, hidden = torch.randn(13, 6), torch.randn(3, 8, 6)
        got = score_hidden_states(kind(hidden), kind(head), kind(target), bias=kind(head[:, 0]))
    assert torch.equal(got.nll, score_hidden_states(hidden, head, target, bias=head[:, 0]).nll)


class OldDLPack(DLPackOnly):
    """As the protocol was before it had versions and copies."""

    def __dlpack__(self, stream=None):
        return self.tensor.__dlpack__(stream=stream)


@pytest.mark.parametrize("kind", [DLPackOnly, OldDLPack])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dlpack_brings_every_dtype_and_any_strides(dtype, kind, batch):
    logits, target = batch[0].to(dtype), batch[1].to(torch.int32)
    for given in (logits, logits.mT.contiguous().mT, logits[:, ::2]):
        of = target[:, ::2] if given.shape != logits.shape else target
        got, want = score_tokens(kind(given), kind(of)), score_tokens(given, of)
        assert got.nll.dtype == want.nll.dtype
        assert torch.equal(got.nll, want.nll)
    metric, own = CrossEntropy(), CrossEntropy()
    metric.update(kind(logits), kind(target))
    own.update(logits, target)
    assert torch.equal(metric.state, own.state)


def test_arrays_share_their_memory():
    array = np.zeros(3, dtype=np.float32)
    as_tensor(array)[0] = 1
    tensor = torch.zeros(3)
    as_tensor(DLPackOnly(tensor))[0] = 1
    assert array[0] == tensor[0] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"logit_scale": 0.3},
        {"logit_softcap": 2.0},
        {"bias": True, "logit_scale": 3.0, "logit_softcap": 5.0},
    ],
    ids=["plain", "bias", "scale", "softcap", "all"],
)
def test_hidden_states_score_as_their_logits(options, dtype):
    hidden, head = torch.randn(3, 7, 16).to(dtype), torch.randn(301, 16).to(dtype)
    target, bias = torch.randint(301, (3, 7)), torch.randn(301).to(dtype)
    target[0, 0] = -100
    options = dict(options) | ({"bias": bias} if "bias" in options else {})
    logits = F.linear(hidden, head, options.get("bias"))
    if options.keys() & {"logit_scale", "logit_softcap"}:
        logits = logits.to(torch.promote_types(dtype, torch.float32)) * options.get("logit_scale", 1.0)
        if cap := options.get("logit_softcap"):
            logits = cap * torch.tanh(logits / cap)
    got = score_hidden_states(hidden, head, target, token_bytes=torch.arange(301), **options)
    want = score_tokens(logits, target, token_bytes=torch.arange(301))
    for name, value in want.fields().items():
        torch.testing.assert_close(got.fields()[name], value, **tolerance(dtype))


def test_hidden_states_take_the_training_loss_and_any_strides(batch):
    hidden, head = torch.randn(3, 9, 16), torch.randn(13, 16)
    options = {"label_smoothing": 0.1, "class_weight": torch.rand(13)}
    got = score_hidden_states(hidden[:, :-1], head, batch[1], **options)
    want = score_tokens(hidden[:, :-1] @ head.T, batch[1], **options)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.loss_weight, want.loss_weight, rtol=0, atol=0)


def test_many_rows_pass_through_many_chunks():
    logits, target = torch.randn(700, 1100), torch.randint(1100, (700,))
    want = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(score_tokens(logits, target).nll, want, **tolerance(torch.float32))
    hidden, head = torch.randn(130, 8), torch.randn(60_000, 8)
    target = torch.randint(60_000, (130,))
    want = F.cross_entropy(hidden @ head.T, target, reduction="none")
    torch.testing.assert_close(score_hidden_states(hidden, head, target).nll, want, rtol=1e-6, atol=2e-6)


L, T = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((L, T[:, :2]), {}, r"one target per row of logits, shape \(2, 3\); got \(2, 2\)\. Nothing is shifted here"),
        ((L, T[0]), {}, r"expected one target per row of logits, shape \(2, 3\); got \(3,\)$"),
        (
            (L, T.float()),
            {},
            r"float targets are distributions, one per row, of shape \(2, 3, 4\); got \(2, 3\)\. Class ids need",
        ),
        ((L, T.bool()), {}, r"expected integer targets or float distributions; got torch\.bool"),
        (
            (L.long(), T),
            {},
            r"expected logits .* float64, float32, float16 or bfloat16 .* got \(2, 3, 4\) of torch\.int64",
        ),
        ((L[..., :0], T), {}, r"with V ≥ 1; got \(2, 3, 0\)"),
        ((torch.tensor(1.0), T), {}, r"expected logits .* got \(\) of torch\.float32"),
        (("abc", T), {}, r"expected a tensor, a NumPy array or an array with __dlpack__; got str"),
        ((L, T), {"weight": torch.ones(2)}, r"expected one weight per row, shape \(2, 3\); got \(2,\)\. For one per sequence, pass `weight\[:, None\]"),
        (
            (L, T),
            {"class_weight": torch.ones(3)},
            r"expected one class_weight per class, shape \(4,\); got \(3,\)\. For one per token, pass `weight=`",
        ),
        (
            (L, T),
            {"token_bytes": torch.ones(3).int()},
            r"one entry of token_bytes per class, shape \(4,\); got \(3,\).* vocab_size=4\) pads",
        ),
        ((L, T), {"label_smoothing": 1.5}, r"label_smoothing is a number in \[0, 1\]; got 1\.5"),
        ((L, T), {"label_smoothing": "x"}, r"label_smoothing is a number in \[0, 1\]; got 'x'"),
        ((L, T), {"token_bytes": torch.ones(4)}, r"token_bytes holds whole numbers of bytes; got torch\.float32"),
        (
            (torch.zeros(2, 7, 3), T),
            {},
            r"got \(2, 3\)\. The classes come last: logits\.movedim\(1, -1\) has \(2, 3\) rows of 7",
        ),
        ((torch.zeros(2, 7, 3, 5), torch.zeros(2, 3, 5).long()), {}, r"The classes come last: .* rows of 7"),
        ((L, T), {"ignore_index": None}, r"ignore_index is an int; got None"),
    ],
)
def test_what_cannot_be_scored_says_why(arguments, options, message):
    with pytest.raises(InvalidInputError, match=message):
        score_tokens(*arguments, **options)


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
        (torch.zeros(2, 3), torch.zeros(5, 3), {"logit_softcap": 0.0}, r"positive and finite; got 0\.0\. Pass None for no"),
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
