"""Products with weights against float64 and torch's own; bits that depend on nothing but the row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import native as native_build
from torch.nn import functional as F

from xent_metrics.scoring.linear import LMHead
from xent_metrics.scoring.scores import ExtraScore

native = native_build.build()
level = native_build.every_level(native)


@pytest.fixture
def threads():
    """Sets how many there are, for a test."""
    number = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(number)


def gated(states, gate, up):
    """The plugin's own answer, which must not be None."""
    result = native.products.gated_products(states, gate, up)
    assert result is not None
    return result


def head(states, weight, target):
    result = native.linear_cross_entropy_backend(states, LMHead(weight), target, {})
    assert result is not None
    return result


def assert_gated_as_exact_as_torch(states, gate, up) -> None:
    """Not much further from float64 than torch's own float32 is, on the whole and at the worst."""
    truth = F.silu(F.linear(states.double(), gate.double())) * F.linear(states.double(), up.double())
    theirs = F.silu(F.linear(states, gate)) * F.linear(states, up) - truth
    ours = gated(states, gate, up) - truth
    assert ours.shape == truth.shape
    for error in (torch.norm, lambda off: off.abs().max()):
        assert float(error(ours)) <= 2.5 * float(error(theirs)) + 2e-7 * float(error(truth))


def assert_scores(states, weight, target) -> None:
    """nll and confidence within what rounding makes of the logits, and correct as of torch where that is beyond doubt."""
    logits = states.double() @ weight.double().T
    nll, confidence, correct = head(states, weight, target)
    truth = F.cross_entropy(logits, target, reduction="none")
    size = states.double().norm(dim=-1) * weight.double().norm(dim=-1).max()  # of the largest possible logit
    assert bool(((nll - truth).abs() <= 1e-6 * truth + 1e-6 * size + 1e-7).all())
    largest = logits.softmax(-1).amax(-1)
    assert bool(((confidence - largest).abs() <= largest * (2e-6 * size + 1e-6)).all())
    top = logits.topk(min(2, logits.shape[-1]), dim=-1)
    sure = (top.values[:, 0] - top.values[:, -1] > 4e-6 * size) | (logits.shape[-1] == 1)
    assert torch.equal(correct[sure], (top.indices[:, 0] == target)[sure])


@pytest.mark.parametrize("rows", [128, 129, 131, 132, 133, 200])
@pytest.mark.parametrize("depth", [1, 15, 16, 33, 576, 577, 1200])
def test_gated_products_of_any_shape(rows, depth):
    gate, up = torch.randn(2, 40, depth)
    assert_gated_as_exact_as_torch(torch.randn(rows, depth), gate, up)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 255, 256, 257, 1536])
def test_gated_products_of_any_width(columns):
    gate, up = torch.randn(2, columns, 70)
    assert_gated_as_exact_as_torch(torch.randn(3, 50, 70), gate, up)


def test_gates_of_any_size():
    states = torch.ones(128, 1)
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 80.0, -80.0, 200.0, -200.0, 1e30, -1e30])
    found = gated(states, values[:, None], torch.ones(12, 1))
    torch.testing.assert_close(found[5].double(), F.silu(values.double()), rtol=4e-7, atol=1e-30)


def test_a_gate_that_is_not_finite_shows():
    states = torch.zeros(128, 3)
    states[7] = torch.tensor([torch.nan, 1.0, 1.0])
    states[8, 0] = torch.inf
    found = gated(states, torch.ones(20, 3), torch.ones(20, 3)).isfinite().all(-1)
    assert found.tolist() == [row not in (7, 8) for row in range(128)]


@pytest.mark.parametrize("rows", [1, 2, 11, 12, 13, 24, 100])
@pytest.mark.parametrize("vocab_size", [1, 2, 31, 32, 33, 449, 1000, 5003])
def test_scores_of_any_number_of_rows_and_classes(rows, vocab_size):
    assert_scores(torch.randn(rows, 50), torch.randn(vocab_size, 50), torch.randint(vocab_size, (rows,)))


@pytest.mark.parametrize("depth", [1, 7, 16, 100, 575, 576, 577, 1153, 9000])
def test_scores_of_hidden_states_of_any_size(depth):
    assert_scores(torch.randn(30, depth), torch.randn(700, depth) / depth**0.5, torch.randint(700, (30,)))


@given(
    rows=st.integers(1, 60), depth=st.integers(1, 700), vocab_size=st.integers(1, 1500),
    spread=st.floats(0, 30), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_scores_of_any_shape_and_spread(rows, depth, vocab_size, spread, seed):
    torch.manual_seed(seed)
    weight = torch.randn(vocab_size, depth) * spread / depth**0.5
    assert_scores(torch.randn(rows, depth), weight, torch.randint(vocab_size, (rows,)))


def one_hot_head(logits, target):
    """The scores of exact logits: products with 1."""
    return head(torch.eye(len(logits)), logits.T.contiguous(), target)


def test_a_likely_target_keeps_its_digits_and_an_unlikely_one_its_size():
    logits = torch.zeros(4, 1000)
    logits[0, 999] = 40.0  # nll 999 e^-40
    logits[1, 0] = 1e4
    logits[2] = -1e4
    logits[3, 500] = 1e30
    target = torch.tensor([999, 7, 3, 500])
    truth = torch.tensor([999 * math.exp(-40), 1e4, math.log(1000), 0.0], dtype=torch.float64)
    nll, confidence, correct = one_hot_head(logits, target)
    torch.testing.assert_close(nll.double(), truth, rtol=3e-7, atol=1e-30)
    torch.testing.assert_close(confidence.double(), logits.double().softmax(-1).amax(-1), rtol=3e-7, atol=0)
    assert correct.tolist() == [True, False, False, True]


@pytest.mark.parametrize("first", [0, 5, 31, 448, 700])
@pytest.mark.parametrize("second", [1, 32, 447, 701, 2999])
def test_of_equal_logits_the_first_counts(first, second):
    if first >= second:
        first, second = second, first + 1
    logits = torch.randn(2, 3000).clamp(max=3.0)
    logits[:, [first, second]] = 9.0
    _, _, correct = one_hot_head(logits, torch.tensor([first, second]))
    assert correct.tolist() == [True, False]


@pytest.mark.parametrize("vocab_size", [300, 1200])  # of one block and of several
def test_nan_and_infinities_are_as_log_softmax_has_them(vocab_size):
    logits = torch.randn(7, vocab_size)
    logits[1, vocab_size * 2 // 3] = torch.nan
    logits[2, 3] = torch.inf
    logits[3, : vocab_size // 2] = -torch.inf
    logits[4] = -torch.inf
    logits[5, vocab_size * 3 // 4], logits[5, 20] = torch.inf, torch.nan
    logits[6, 5] = -torch.inf
    target = torch.tensor([5, 5, 3, 5, 5, 5, 5])
    expected = F.cross_entropy(logits, target, reduction="none")
    # Products with 0 would make nan of them: a row at a time, with one state.
    found = [
        head(torch.ones(1, 1), row[:, None].contiguous(), ids[None]) for row, ids in zip(logits, target, strict=True)
    ]
    nll, confidence, correct = (torch.cat(column) for column in zip(*found, strict=True))
    torch.testing.assert_close(nll, expected, equal_nan=True)
    assert confidence.isnan().tolist() == [False, True, True, False, True, True, False]
    assert correct.tolist() == (logits.argmax(-1) == target).logical_and(expected.isfinite()).tolist()


def test_a_nan_state_makes_its_own_row_nan_alone():
    states = torch.randn(50, 9)
    states[31, 4] = torch.nan
    nll, confidence, correct = head(states, torch.randn(100, 9), torch.zeros(50, dtype=torch.long))
    assert nll.isnan().nonzero().tolist() == confidence.isnan().nonzero().tolist() == [[31]]
    assert not correct[31]


def test_a_rows_scores_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(threads):
    states, weight, target = torch.randn(100, 600), torch.randn(4000, 600) / 9, torch.randint(4000, (100,))
    whole = head(states, weight, target)

    def assert_same(found, rows):
        assert all(torch.equal(one, other[rows]) for one, other in zip(found, whole, strict=True))

    for number in (1, 2, 5):
        threads(number)
        assert_same(head(states, weight, target), slice(None))
    for rows in (slice(0, 1), slice(99, 100), slice(3, 20), slice(50, None, 7)):
        assert_same(head(states[rows], weight, target[rows]), rows)


def test_a_rows_gated_products_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(threads):
    states, (gate, up) = torch.randn(200, 600), torch.randn(2, 500, 600)
    whole = gated(states, gate, up)
    for number in (1, 2, 3, 7):
        threads(number)
        assert torch.equal(gated(states, gate, up), whole)
    assert torch.equal(gated(states[40:171], gate, up), whole[40:171])


def test_strides_are_followed():
    states, weight, target = torch.randn(9, 160).T, torch.randn(300, 9), torch.arange(320)[::2] % 300
    for one, other in zip(head(states, weight, target), head(states.contiguous(), weight, target.clone()), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(gated(states, weight, weight), gated(states.contiguous(), weight, weight))


STATES, WEIGHT, TARGET = torch.randn(128, 8), torch.randn(20, 8), torch.zeros(128, dtype=torch.long)


@pytest.mark.parametrize(
    "given",
    [
        (STATES[:127], WEIGHT, WEIGHT),
        (STATES.half(), WEIGHT.half(), WEIGHT.half()),
        (STATES, WEIGHT, WEIGHT[:19]),
        (STATES, WEIGHT, WEIGHT.double()),
        (STATES, WEIGHT[:, :7], WEIGHT[:, :7]),
        (STATES, WEIGHT[:0], WEIGHT[:0]),
        (STATES, WEIGHT, WEIGHT.T.contiguous().T),
        (STATES.to("meta"), WEIGHT, WEIGHT),
    ],
)
def test_other_products_are_left_to_torch(given):
    assert native.products.gated_products(*given) is None


@pytest.mark.parametrize(
    "given",
    [
        (STATES.double(), LMHead(WEIGHT.double()), TARGET, {}),
        (STATES.bfloat16(), LMHead(WEIGHT.bfloat16()), TARGET, {}),
        (STATES, LMHead(WEIGHT.double()), TARGET, {}),
        (STATES[None], LMHead(WEIGHT), TARGET, {}),
        (STATES, LMHead(WEIGHT), TARGET[1:], {}),
        (STATES, LMHead(WEIGHT), TARGET.int(), {}),
        (STATES, LMHead(WEIGHT[:, :7]), TARGET, {}),
        (STATES, LMHead(WEIGHT.T.contiguous().T), TARGET, {}),
        (STATES[:0], LMHead(WEIGHT), TARGET[:0], {}),
        (STATES, LMHead(torch._efficientzerotensor((20, 8))), TARGET, {}),
        (STATES, LMHead(WEIGHT, bias=torch.zeros(20)), TARGET, {}),
        (STATES, LMHead(WEIGHT, scale=1.0), TARGET, {}),
        (STATES, LMHead(WEIGHT, softcap=30.0), TARGET, {}),
        (STATES, LMHead(WEIGHT), TARGET, {"largest": ExtraScore(lambda rows, index: rows.amax(-1))}),
    ],
)
def test_other_heads_and_rows_are_left_to_torch(given):
    assert native.linear_cross_entropy_backend(*given) is None
