"""Arrays of any framework are taken without a copy, targets are checked, and unusable inputs raise with a reason."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xent_metrics import CrossEntropy, get_metric, score_hidden_states, score_tokens
from xent_metrics.errors import InvalidInputError, InvalidTargetError
from xent_metrics.scoring import inputs
from xent_metrics.scoring.inputs import as_tensor, on_device
from xent_metrics.scoring.rows import RowScorer
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.testing.host_sync import OperatorsForMethods

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INT_DTYPES = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]


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


def test_targets_out_of_range_and_non_distributions_are_marked():
    scores = score_tokens(torch.zeros(5, 4), torch.tensor([0, 4, -1, -100, 10**12]))
    assert scores.invalid.tolist() == [False, True, True, False, True]
    assert scores.nll.isnan().tolist() == [False, True, True, False, True]
    assert not scores.correct[1:].any()
    soft = torch.tensor([[0.5, 0.5], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [0.0, 0.0]])
    assert score_tokens(torch.zeros(5, 2), soft).invalid.tolist() == [False, True, True, True, True]
    for dtype in DTYPES:
        assert not score_tokens(torch.zeros(1, 1000), torch.rand(1, 1000).softmax(-1).to(dtype)).invalid.any()


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


L, T = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((L, T[:, :2]), {}, r"one target per row of logits, shape \(2, 3\); got \(2, 2\)\. Nothing is shifted here"),
        ((L, T[0]), {}, r"expected one target per row of logits, shape \(2, 3\); got \(3,\)"),
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
        (
            (L, T),
            {"weight": torch.ones(2)},
            r"expected one weight per row, shape \(2, 3\); got \(2,\)\. For one per sequence, pass `weight\[:, None\]",
        ),
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
        ((L.to_sparse(), T), {}, r"expected a dense tensor; got a sparse_coo one\. `\.to_dense\(\)` makes it dense"),
        ((L[0].to_sparse_csr(), T[0]), {}, r"expected a dense tensor; got a sparse_csr one"),
        ((L.to_mkldnn(), T), {}, r"expected a dense tensor; got a mkldnn one"),
        ((L, T.to_sparse()), {}, r"expected a dense tensor; got a sparse_coo one"),
        ((L, T), {"weight": torch.ones(2, 3).to_sparse()}, r"expected a dense tensor; got a sparse_coo one"),
        (
            (L, torch.nested.nested_tensor([T[0], T[1, :2]])),
            {},
            r"got a nested one\. .*; pad targets with ignore_index",
        ),
        (
            (L, np.ma.masked_array(T.numpy(), T.numpy() == 0)),
            {},
            r"masked elements, and its mask is not read\. Mask targets with ignore_index, `target\.filled\(-100\)`",
        ),
    ],
)
def test_what_cannot_be_scored_says_why(arguments, options, message):
    with pytest.raises(InvalidInputError, match=message):
        score_tokens(*arguments, **options)


def warned(call) -> list[str]:
    """The warnings of two calls on CUDA tensors without data."""
    inputs._warn_of_copies.cache_clear()
    with FakeTensorMode(), OperatorsForMethods(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            call(torch.device("cuda", 0))
    inputs._warn_of_copies.cache_clear()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["targets", "weight", "class_weight", "token_bytes"])
def test_copies_that_wait_for_the_device_are_warned_of_once(name):
    tensors = {
        "targets": torch.zeros(4, dtype=torch.long),
        "weight": torch.ones(4),
        "class_weight": torch.ones(9),
        "token_bytes": torch.arange(9),
    }

    def score(device):
        given = {
            key: torch.empty(x.shape, dtype=x.dtype, device="cpu" if key == name else device)
            for key, x in tensors.items()
        }
        scores = score_tokens(torch.empty(4, 9, device=device), given.pop("targets"), **given)
        assert scores.nll.device.type == "cuda"

    [message] = warned(score)
    assert message.startswith(f"got {name} on the CPU for logits on cuda: every call copies this, and waits")


def test_what_is_on_the_device_already_or_is_one_number_is_not_warned_of():
    def move(device):
        there = torch.ones(3, device=device)
        on_device(there, there.device, "x")
        on_device(torch.tensor(1.0), device, "x")
        on_device(torch.ones(3), torch.device("cpu"), "x")
        on_device(torch.ones(3), torch.device("meta"), "x")

    assert warned(move) == []


def test_a_masked_array_without_a_mask_is_an_array():
    assert score_tokens(L, np.ma.masked_array(T.numpy())).nll.equal(score_tokens(L, T).nll)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_sign_that_is_yet_to_be_applied_is(dtype):
    """Views of complex tensors have torch's negative bit, which kernels that read memory don't see."""
    logits = torch.randn(40, 300).to(dtype)
    target = torch.arange(40)
    negative = torch._neg_view(logits)
    assert negative.is_neg()
    assert score_tokens(negative, target).nll.equal(score_tokens(-logits, target).nll)


def test_rows_of_a_negative_number_of_bytes_are_invalid():
    target = torch.tensor([[0, 1, 2], [3, 3, 2]])
    scores = score_tokens(L, target, token_bytes=torch.tensor([-1, -2, 3, 4]), ignore_index=3)
    assert scores.invalid is not None
    assert scores.invalid.equal(target < 2)
    metric = get_metric("bits_per_byte", ignore_index=3)
    metric.update(scores)
    with pytest.raises(InvalidTargetError, match="had a weight or a number of bytes below 0"):
        metric.compute()


def test_arrays_stay_on_the_host_whatever_the_default_device(batch):
    logits, target = batch
    with torch.device("meta"):  # as under `torch.set_default_device("cuda")`
        found = score_tokens(logits.numpy(), target.numpy())
    assert found.nll.equal(score_tokens(logits, target).nll)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"label_smoothing": 0.1}, False),
        ({"class_weight": torch.ones(5)}, False),
        ({"extra_scores": {"rank": ExtraScore(torch.argmax)}}, False),
    ],
)
def test_only_rows_with_nothing_else_asked_for_are_plain(options, plain):
    logits, target = torch.zeros(2, 5), torch.zeros(2, dtype=torch.long)
    made = inputs.make_plan(logits.shape, logits.device, target, inputs.ScoreOptions(**options))
    assert made.plain is plain
    assert made.has_loss is bool(options.keys() & {"label_smoothing", "class_weight"})
    soft = inputs.make_plan(logits.shape, logits.device, torch.full((2, 5), 0.2), inputs.ScoreOptions())
    assert soft.plain is False


def test_options_that_hold_tensors_are_compared_by_identity():
    options, others = (inputs.ScoreOptions(weight=torch.ones(3)) for _ in range(2))
    assert options == options
    assert options != others
    assert len({options, others}) == 2


@pytest.mark.parametrize(("dtype", "off", "valid"), [
    (torch.float32, 5e-5, True), (torch.float32, 1e-3, False), (torch.bfloat16, 8e-3, True), (torch.float16, 2e-2, False),
])  # fmt: skip
def test_how_far_from_1_a_distribution_may_sum(dtype, off, valid):
    soft = torch.tensor([[0.5, 0.5 + off]]).to(dtype)
    assert score_tokens(torch.zeros(1, 2), soft).invalid.tolist() == [not valid]
