"""Scores of logits against float64, torch's rules at the extremes, and bits that depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch
import xent_metrics_triton as plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from xent_metrics_triton import rows

from xent_metrics.metrics import distribution, ranking
from xent_metrics.scoring.scores import ExtraScore

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EXTRAS = {
    "entropy": ExtraScore(distribution.entropy),
    "squared_error": ExtraScore(distribution.squared_error),
    "squared_log_normaliser": ExtraScore(distribution.squared_log_normaliser, of="logits"),
    "target_rank": ExtraScore(ranking.target_rank, of="logits"),
}


def kernel(logits, target, extra_scores=None):
    """The plugin's own answer, which must not be None."""
    result = plugin.score_backend(logits, target, extra_scores or {})
    assert result is not None
    return [*result[:3], *(result[3][name] for name in extra_scores or {})]


def truth(logits, target):
    return F.cross_entropy(logits.double(), target, reduction="none")


def assert_accurate(logits, target) -> None:
    """nll is the nearest float32 to a number that is off by at most 1.2e-7: so off by 1e-6 below 32 nats; torch's own rest."""
    nll, confidence, correct = kernel(logits, target)
    expected = truth(logits, target)
    error = (nll - expected).abs()
    assert bool((error <= expected * 2**-24 + 1.2e-7).all()), (error - expected * 2**-24).max()
    assert bool((error <= torch.where(expected < 32, 1e-6, 1e-7 * expected)).all())
    torch.testing.assert_close(confidence, logits.double().softmax(-1).amax(-1).float(), rtol=3e-7, atol=1e-37)
    assert torch.equal(correct, logits.argmax(-1) == target)


def assert_extras(logits, target) -> None:
    """As torch computes them of the same logits in float64; the rank exactly."""
    *plain, entropy, squared_error, squared_log_normaliser, rank = kernel(logits, target, EXTRAS)
    assert same(plain, kernel(logits, target))
    log_prob = logits.double().log_softmax(-1)
    close = {"equal_nan": True, "check_dtype": False}
    # Every term of the entropy, x e^x with |x| < ln V or so, is off by 1e-7 of itself.
    torch.testing.assert_close(entropy, distribution.entropy(log_prob, target), rtol=3e-7, atol=1e-6, **close)
    torch.testing.assert_close(
        squared_error, distribution.squared_error(log_prob, target), rtol=3e-7, atol=2e-7, **close
    )
    log_squares = distribution.squared_log_normaliser(logits.double(), target)
    torch.testing.assert_close(squared_log_normaliser, log_squares, rtol=3e-7, atol=1e-6, **close)
    assert torch.equal(rank, ranking.target_rank(logits, target))


def same(result, expected) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


def random_batch(num_rows, vocab_size, dtype=torch.float32, spread=3.0):
    return (torch.randn(num_rows, vocab_size) * spread).to(dtype), torch.randint(vocab_size, (num_rows,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 2, 4095, 4096, 4097, 50_257])
def test_nll_is_within_the_bounds_whatever_the_spread_of_the_logits(vocab_size, dtype):
    num_rows = 8 if vocab_size < 5000 else 2
    logits, target = random_batch(num_rows, vocab_size)
    logits = (logits * torch.logspace(-3, 2.5, num_rows)[:, None]).to(dtype)
    target[::2] = logits[::2].argmax(-1)
    assert_accurate(logits, target)
    assert_extras(logits, target)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [3, 17, 63, 64, 65, 129, 300])
def test_any_number_of_columns_lanes_tiles_and_segments(vocab_size, dtype):
    logits, target = random_batch(6, vocab_size)
    logits = (logits * torch.logspace(-2, 2, 6)[:, None]).to(dtype)
    target[::3] = logits[::3].argmax(-1)
    assert_accurate(logits, target)
    assert_extras(logits, target)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("offset", [-1e30, -1e4, -90, 90, 1e4, 1e30])
def test_an_offset_that_all_logits_share_changes_nothing_but_their_rounding(offset):
    logits, target = random_batch(8, 300, spread=20.0)
    assert_accurate(logits + offset, target)


def test_a_million_classes():
    assert_accurate(*random_batch(1, 1_000_003, torch.bfloat16))


@pytest.mark.usefixtures("small")
def test_equal_terms_whose_errors_add_up_stay_within_the_bound():
    """Every other logit is the float that exp is worst at among some, under a top that makes nll numbers from 16 to 32."""
    steps = -torch.linspace(0.01, 2.0, 2000)
    errors = (rows_of(steps).double() / steps.double().exp() - 1).abs()
    logits = torch.full((30, 200), float(steps[errors.argmax()]))
    logits[:, 0] = 0.0
    logits[:, 1] = torch.linspace(-10.0, -25.0, 30)
    assert_accurate(logits, torch.ones(30, dtype=torch.long))


def rows_of(gaps):
    """exp of each gap, read from the kernel's own confidence: 1 / (1 + exp)."""
    confidence = kernel(torch.stack([torch.zeros_like(gaps), gaps], -1)[:200], torch.zeros(200, dtype=torch.long))[1]
    return torch.cat([(1 / confidence.double() - 1).float(), gaps[200:].exp()])


def test_uniform_logits_are_exactly_ln_v():
    nll, confidence, _, *extras = kernel(torch.zeros(3, 4096), torch.tensor([0, 7, 4095]), EXTRAS)
    ln_v = torch.tensor(4096.0).double().log()
    assert nll.tolist() == [ln_v.float().item()] * 3
    assert confidence.tolist() == [1 / 4096] * 3
    assert extras[0].tolist() == [ln_v.float().item()] * 3
    assert extras[2].tolist() == [ln_v.square().float().item()] * 3
    assert extras[3].tolist() == [1, 8, 4096]


def test_one_class_is_certain():
    one_class = torch.tensor([-1e5, -3.3, 0.0, 1e-40, 2.7, 681.0, 3e38])[:, None]
    nll, confidence, correct = kernel(one_class, torch.zeros(7, dtype=torch.long))
    assert nll.tolist() == [0.0] * 7
    assert confidence.tolist() == [1.0] * 7
    assert correct.all()


floats = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45, -86.0, 708.0]),
)


@pytest.mark.usefixtures("small")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logits=st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=8), target=st.integers(0, 2))
def test_any_floats_are_scored_as_torch_does(logits, target):
    """nan, infinities, subnormals and the largest floats; the reference is log_softmax in float64."""
    logits, targets = torch.tensor(logits), torch.full((len(logits),), target)
    nll, confidence, correct, *extras = kernel(logits, targets, EXTRAS)
    log_prob = logits.double().log_softmax(-1)
    torch.testing.assert_close(nll, -log_prob[:, target].float(), rtol=1.2e-7, atol=1e-6, equal_nan=True)
    expected = torch.where(log_prob.isnan().any(-1), torch.nan, log_prob.amax(-1).exp())
    torch.testing.assert_close(confidence, expected.float(), rtol=3e-7, atol=1e-37, equal_nan=True)
    assert torch.equal(correct, (logits.argmax(-1) == target) & ~nll.isnan())
    close = {"rtol": 3e-7, "atol": 1e-6, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(extras[0], distribution.entropy(log_prob, targets), **close)
    torch.testing.assert_close(extras[1], distribution.squared_error(log_prob, targets), **close)
    assert torch.equal(extras[3], ranking.target_rank(logits, targets))
    as_torch = distribution.squared_log_normaliser(logits.double(), targets).float()
    torch.testing.assert_close(extras[2], as_torch, **close)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("place", [0, 15, 16, 63, 64, 127, 128, 499])
def test_nan_and_infinities_anywhere_in_a_long_row(place):
    logits, target = random_batch(4, 500)
    logits[0, place], logits[1, place], logits[2, place] = torch.nan, torch.inf, -torch.inf
    logits[3] = -torch.inf
    nll, confidence, correct = kernel(logits, torch.full((4,), place))
    assert nll.isnan().tolist() == [True, True, False, True]
    assert nll[2] == torch.inf
    assert confidence.isnan().tolist() == [True, True, False, True]
    assert not correct.any()
    assert_accurate(logits[2:3], (target[2:3] + (target[2:3] == place).long()) % 500)


@pytest.mark.usefixtures("small")
def test_masked_classes_take_no_part():
    logits, target = random_batch(4, 100)
    masked = F.pad(logits, (0, 100), value=-torch.inf)
    lowest = F.pad(logits, (0, 100), value=torch.finfo(torch.float32).min)
    assert_accurate(lowest, target)
    assert same(kernel(masked, target), kernel(lowest, target))
    assert_extras(masked, target)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_of_equal_maxima_is_the_top(dtype):
    logits = torch.zeros(7, 500, dtype=dtype)
    for row, places in enumerate([(0, 1), (15, 16), (16, 70), (100, 130), (127, 128), (256, 499), (1, 499)]):
        logits[row, list(places)] = 3.0
    for target in (0, 16, 128, 499):
        targets = torch.full((7,), target)
        found = kernel(logits, targets, EXTRAS)
        assert torch.equal(found[2], logits.float().argmax(-1) == target)
        assert same(kernel(logits, targets), found[:3])  # without ranks it is found otherwise
        assert torch.equal(found[-1], ranking.target_rank(logits, targets))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_nothing_but_the_row(dtype):
    logits, target = random_batch(11, 150, dtype, spread=30.0)
    expected = kernel(logits, target, EXTRAS)
    alone = [kernel(logits[i : i + 1], target[i : i + 1], EXTRAS) for i in range(11)]
    assert same([torch.cat(column) for column in zip(*alone, strict=True)], expected)
    order = torch.randperm(11)
    assert same(kernel(logits[order], target[order], EXTRAS), [column[order] for column in expected])
    wider = torch.randn(14, 300).to(dtype)
    wider[1:12, 51:201] = logits  # neither aligned nor adjacent
    assert same(kernel(wider[1:12, 51:201], target, EXTRAS), expected)
    by_class = logits.T.contiguous().T
    assert by_class.stride() == (1, 11)
    assert same(kernel(by_class, target, EXTRAS), expected)
    assert same(kernel(torch.stack([logits, logits], dim=-1)[..., 1], target, EXTRAS), expected)
    one = logits[:1].expand(5, 150)
    assert same(kernel(one, torch.arange(5)), kernel(one.contiguous(), torch.arange(5)))
    for name, column in zip(EXTRAS, expected[3:], strict=True):  # whatever else is wanted
        found = kernel(logits, target, {name: EXTRAS[name]})
        assert same(found[:3], expected[:3])
        assert torch.equal(found[3], column)


@given(
    vocab_size=st.integers(1, 400), num_rows=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), skip=st.integers(0, 9)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("small")
def test_any_row_has_its_own_bits_in_any_place(vocab_size, num_rows, seed, skip):
    torch.manual_seed(seed)
    dtype = DTYPES[seed % 3]
    logits, target = random_batch(num_rows, vocab_size, dtype, spread=10.0)
    around = torch.randn(num_rows, vocab_size + skip + 3).to(dtype)
    around[:, skip : skip + vocab_size] = logits
    last = slice(num_rows - 1, num_rows)
    expected = [column[last] for column in kernel(logits, target)]
    assert same(kernel(around[last, skip : skip + vocab_size], target[last]), expected)


def test_a_target_outside_the_row_reads_nothing_outside_of_it():
    nll, confidence, correct = kernel(torch.randn(4, 5), torch.tensor([-1, 5, 2**62, -(2**62)]))
    assert nll.isnan().all()
    assert confidence.isfinite().all()
    assert not correct.any()


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 5, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")),
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch._efficientzerotensor((3, 5)), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 5), torch._efficientzerotensor((3,), dtype=torch.long)),
        (torch.zeros(3, 5), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(3, 5), torch.zeros(6, dtype=torch.long)[::2]),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long, device="meta")),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        (torch.randn(3, 5, dtype=torch.complex64).conj().imag, torch.zeros(3, dtype=torch.long)),
    ],
)
def test_what_the_kernel_does_not_take_is_left_to_torch(logits, target):
    assert plugin.score_backend(logits, target, {}) is None


def test_unknown_extra_scores_are_left_to_torch():
    mine = ExtraScore(lambda log_prob, index: log_prob[:, 0])
    by_log_prob = ExtraScore(ranking.target_rank)
    nll, _, _, extras = plugin.score_backend(
        torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), {"mine": mine, "r": by_log_prob, "h": EXTRAS["entropy"]}
    )
    assert list(extras) == ["h"]
    torch.testing.assert_close(extras["h"], nll)


def test_the_shapes_of_tiles_are_what_the_layouts_need():
    """A thread's columns of one lane group are 128 bits: else Triton would split a lane's columns among threads."""
    for size, (lanes, depth) in rows.SHAPES.items():
        assert lanes * size == rows.THREADS * 16
        assert lanes * depth * rows.TILES == 32_768
