"""Scores of logits against float64, torch's rules at the extremes, and bits that depend on nothing but the row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import native as native_build
from torch.nn import functional as F

from xent_metrics import score_hidden_states, score_tokens

native = native_build.build()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LEVELS = range(native.libraries.level + 1)  # the instruction sets of this processor


# Nothing below would be shown by torch's own scores.
pytestmark = pytest.mark.usefixtures("loaded")


def kernel(logits, target):
    """The plugin's own answer, which must not be None."""
    result = native.score_backend(logits, target)
    assert result is not None
    return result


def truth(logits, target):
    """nll in float64, by torch."""
    return F.cross_entropy(logits.double(), target, reduction="none")


def assert_accurate(logits, target) -> None:
    """The promised bounds, and torch's own confidence and top-1."""
    nll, confidence, correct = kernel(logits, target)
    expected = truth(logits, target)
    error = (nll - expected).abs()
    bound = torch.where(expected < 32, 1e-6, 1e-7 * expected)
    assert bool((error <= bound).all()), (error / bound).max()
    torch.testing.assert_close(confidence, logits.double().softmax(-1).amax(-1).float(), rtol=2e-7, atol=1e-37)
    assert torch.equal(correct, logits.argmax(-1) == target)


def same(result, expected) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


def random_batch(rows, vocab_size, dtype=torch.float32, spread=3.0):
    return (torch.randn(rows, vocab_size) * spread).to(dtype), torch.randint(vocab_size, (rows,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 2047, 2048, 2049, 4096, 50_304])
def test_nll_is_within_the_bounds_whatever_the_spread_of_the_logits(vocab_size, dtype):
    logits, target = random_batch(64, vocab_size)
    logits = logits * torch.logspace(-3, 2.5, 64)[:, None]
    assert_accurate(logits.to(dtype), target)


@pytest.mark.parametrize("offset", [-1e30, -1e4, -700, -640.5, -639.5, -90, 90, 679.5, 680.5, 1e4, 1e30])
def test_an_offset_that_all_logits_share_changes_nothing_but_their_rounding(offset):
    logits, target = random_batch(32, 3000, spread=20.0)
    assert_accurate(logits + offset, target)


@pytest.mark.parametrize("top", [-700.0, -650.0, 650.0, 700.0])
def test_terms_far_below_an_extreme_maximum_do_not_count(top):
    logits = torch.full((1, 50_000), top - 1000.0)
    logits[0, 3] = top
    assert kernel(logits, torch.tensor([3]))[0].item() == 0.0


def test_a_million_classes():
    assert_accurate(*random_batch(3, 1_000_003, torch.bfloat16))


def test_rows_of_two_show_the_error_of_every_single_term():
    """nll = ln(1 + e^(x - top)): half of the term's error, and its own rounding."""
    top = torch.linspace(-600, 600, 200_001)
    logits = torch.stack([top, top - torch.rand_like(top)], dim=-1)
    nll, _, _ = kernel(logits, torch.zeros(len(top), dtype=torch.long))
    assert float((nll - truth(logits, torch.zeros(len(top), dtype=torch.long))).abs().max()) < 0.5 * 4.4e-8 + 3e-8


def test_equal_terms_whose_errors_add_up_stay_within_the_bound():
    """The float that exp is worst at, 50,000 times, under targets that make nll every number from 11 to 32."""
    logits = torch.full((20_000, 5000), 5.19903183)
    logits[:, 0] = torch.linspace(5.0, -18.0, 20_000)
    for rows in logits.split(2000):
        assert_accurate(rows, torch.zeros(2000, dtype=torch.long))


def test_uniform_logits_are_exactly_ln_v():
    nll, confidence, _ = kernel(torch.zeros(3, 4096), torch.tensor([0, 7, 4095]))
    assert nll.tolist() == [torch.tensor(4096.0).double().log().float().item()] * 3
    assert confidence.tolist() == [1 / 4096] * 3


def test_a_sure_token_has_a_tiny_nll_and_never_a_negative_one():
    logits = torch.zeros(200, 300)
    logits[:, 7] = torch.linspace(10, 500, 200)
    nll, confidence, _ = kernel(logits, torch.full((200,), 7))
    torch.testing.assert_close(nll, truth(logits, torch.full((200,), 7)).float(), rtol=1e-6, atol=1e-13)
    assert bool((nll >= 0).all())
    assert bool((confidence <= 1).all())
    one_class = torch.tensor([-1e5, -3.3, 0.0, 1e-40, 2.7, 681.0, 3e38])[:, None]
    assert kernel(one_class, torch.zeros(7, dtype=torch.long))[0].tolist() == [0.0] * 7


floats = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45, 680.0, -640.0, 708.0]
    ),
)


@given(rows=st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=8), target=st.integers(0, 2))
def test_any_floats_are_scored_as_torch_does(rows, target):
    """nan, infinities, subnormals and the largest floats; the reference is log_softmax in float64."""
    logits, targets = torch.tensor(rows), torch.full((len(rows),), target)
    nll, confidence, correct = kernel(logits, targets)
    log_prob = logits.double().log_softmax(-1)
    torch.testing.assert_close(nll, -log_prob[:, target].float(), rtol=1.2e-7, atol=1e-6, equal_nan=True)
    expected = torch.where(log_prob.isnan().any(-1), torch.nan, log_prob.amax(-1).exp())
    torch.testing.assert_close(confidence, expected.float(), rtol=2e-7, atol=1e-37, equal_nan=True)
    assert torch.equal(correct, (logits.argmax(-1) == target) & ~nll.isnan())


@pytest.mark.parametrize("place", [0, 15, 16, 2047, 2048, 4999])
def test_nan_and_infinities_anywhere_in_a_long_row(place):
    logits, target = random_batch(4, 5000)
    logits[0, place], logits[1, place], logits[2, place] = torch.nan, torch.inf, -torch.inf
    logits[3] = -torch.inf
    nll, confidence, correct = kernel(logits, torch.full((4,), place))
    assert nll.isnan().tolist() == [True, True, False, True]
    assert nll[2] == torch.inf
    assert confidence.isnan().tolist() == [True, True, False, True]
    assert not correct.any()
    assert_accurate(logits[2:3], (target[2:3] + (target[2:3] == place).long()) % 5000)


def test_masked_classes_take_no_part():
    logits, target = random_batch(8, 3000)
    masked = F.pad(logits, (0, 3000), value=-torch.inf)
    lowest = F.pad(logits, (0, 3000), value=torch.finfo(torch.float32).min)
    assert_accurate(lowest, target)
    assert same(kernel(masked, target), kernel(lowest, target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_of_equal_maxima_is_the_top(dtype):
    logits = torch.zeros(6, 5000, dtype=dtype)
    for row, places in enumerate([(0, 1), (15, 16), (100, 2048), (2047, 2048), (4096, 4999), (1, 4999)]):
        logits[row, list(places)] = 3.0
    for target in (0, 1, 15, 16, 100, 2047, 2048, 4096, 4999):
        assert torch.equal(kernel(logits, torch.full((6,), target))[2], logits.float().argmax(-1) == target)
    few = torch.randint(3, (500, 40)).to(dtype)
    assert torch.equal(kernel(few, torch.full((500,), 4))[2], few.float().argmax(-1) == 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_float_is_read_as_the_float_it_is(dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    logits = torch.stack([values, torch.full_like(values, 0.5), values.flip(0)], dim=-1)
    target = torch.zeros(len(values), dtype=torch.long)
    for narrow, wide in zip(kernel(logits, target), kernel(logits.float(), target), strict=True):
        torch.testing.assert_close(narrow, wide, rtol=0, atol=0, equal_nan=True)
    assert 2**15 < int(kernel(logits, target)[0].isfinite().sum()) < 2**16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_nothing_but_the_row(dtype):
    logits, target = random_batch(37, 5003, dtype, spread=30.0)
    expected = kernel(logits, target)
    alone = [kernel(logits[i : i + 1], target[i : i + 1]) for i in range(37)]
    assert same([torch.cat(column) for column in zip(*alone, strict=True)], expected)
    order = torch.randperm(37)
    assert same(kernel(logits[order], target[order]), [column[order] for column in expected])
    wider = torch.randn(40, 5100).to(dtype)
    wider[1:38, 51:5054] = logits  # neither aligned nor adjacent
    assert same(kernel(wider[1:38, 51:5054], target), expected)
    assert same(kernel(logits.repeat_interleave(2, 0)[::2], target), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_neither_threads_nor_instructions(dtype, monkeypatch):
    logits, target = random_batch(1500, 5003, dtype, spread=300.0)  # long enough for every thread to take part
    expected = kernel(logits, target)
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert same(kernel(logits, target), expected)
    finally:
        torch.set_num_threads(1)
    for level in LEVELS:
        monkeypatch.setattr(native.libraries, "level", level)
        assert same(kernel(logits, target), expected)


def test_several_python_threads_score_at_once():
    batches = [random_batch(20, 3001) for _ in range(16)]
    expected = [kernel(*batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for result, alone in zip(pool.map(lambda batch: kernel(*batch), batches), expected, strict=True):
            assert same(result, alone)


def test_views_are_scored_where_they_lie(monkeypatch):
    logits, target = torch.randn(4, 9, 300), torch.randint(300, (4, 9))
    seen = record(monkeypatch)
    shifted = score_tokens(logits[:, :-1], target[:, 1:])
    assert [rows.data_ptr() for rows in seen] == [row.data_ptr() for row in logits]
    torch.testing.assert_close(
        shifted.nll.flatten().double(), truth(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
    )
    one = torch.randn(300)
    assert same(kernel(one.expand(5, 300), torch.arange(5)), kernel(one.repeat(5, 1), torch.arange(5)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_that_are_not_adjacent_give_the_same_bits(dtype, monkeypatch):
    monkeypatch.setattr(native.logits, "_LOGITS_PER_COPY", 4000)
    logits, target = random_batch(30, 301, dtype)
    expected = kernel(logits, target)
    by_class = logits.T.contiguous().T
    assert by_class.stride() == (1, 30)
    seen = record(monkeypatch)
    assert same(kernel(by_class, target), expected)
    assert [len(rows) for rows in seen] == [13, 13, 4]
    assert same(kernel(torch.stack([logits, logits], dim=-1)[..., 1], target), expected)
    assert same(kernel(logits[:, :1].expand(30, 301), target), kernel(logits[:, :1].repeat(1, 301), target))


@pytest.mark.parametrize("place", [{"dtype": torch.float64}, {"device": "meta"}], ids=["float64", "meta"])
def test_what_the_kernel_does_not_take_is_left_to_torch(place):
    assert native.score_backend(torch.zeros(6, 8, **place), torch.arange(6)) is None
    scores = score_tokens(torch.zeros(6, 8, **place), torch.arange(6))
    assert scores.nll.dtype == place.get("dtype", torch.float32)
    assert scores.nll.device.type == place.get("device", "cpu")


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"class_weight": torch.arange(40.0)}], ids=["smoothed", "weighted"]
)
def test_the_loss_is_torch_s_and_nll_the_kernel_s(options):
    logits, target = random_batch(60, 40)
    scores = score_tokens(logits, target, **options)
    assert torch.equal(scores.nll, kernel(logits, target)[0])
    names = {"class_weight": "weight"}
    expected = F.cross_entropy(logits, target, reduction="none", **{names.get(k, k): v for k, v in options.items()})
    torch.testing.assert_close(scores.loss, expected)


def test_a_lazily_negated_view_is_not_read_as_if_it_were_not():
    logits = torch.randn(4, 5, dtype=torch.complex64).conj().imag
    assert logits.is_neg()
    torch.testing.assert_close(
        score_tokens(logits, torch.arange(4)).nll.double(), truth(logits.clone(), torch.arange(4))
    )


def test_the_memory_beyond_a_row_is_not_read_for_a_wrong_target():
    nll, confidence, correct = kernel(torch.randn(4, 5), torch.tensor([-1, 5, 2**62, -(2**62)]))
    assert nll.isnan().all()
    assert confidence.isnan().all()
    assert not correct.any()


def test_no_rows():
    assert [column.shape for column in kernel(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))] == [(0,)] * 3
    assert score_tokens(torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.long)).nll.shape == (2, 0)


def test_default_dtype_and_device_have_no_say(monkeypatch):
    logits, target = random_batch(3, 10)
    expected = kernel(logits, target)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert same(kernel(logits, target), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_ignored_and_invalid_targets_stay_the_core_s_business():
    logits, target = random_batch(6, 40)
    target[1], target[2] = -100, 40
    scores = score_tokens(logits, target.to(torch.int32))
    assert scores.counted.tolist() == [True, False, True, True, True, True]
    assert scores.nll[1] == 0
    assert scores.nll[2].isnan()
    kept = [0, 3, 4, 5]
    assert torch.equal(scores.nll[kept], kernel(logits[kept], target[kept])[0])


def test_the_hidden_state_route_takes_the_kernel_up_by_itself_in_half_precision(monkeypatch):
    hidden, head = torch.randn(3, 100, 16).bfloat16(), torch.randn(40_000, 16).bfloat16()
    target = torch.randint(40_000, (3, 100))
    seen = record(monkeypatch)
    scores = score_hidden_states(hidden, head, target, logit_softcap=30.0)
    blocks = list(seen)
    assert [tuple(rows.shape) for rows in blocks] == [(157, 40_000), (143, 40_000)]
    expected = [kernel(rows, ids)[0] for rows, ids in zip(blocks, target.flatten().split(157), strict=True)]
    assert torch.equal(scores.nll.flatten(), torch.cat(expected))
    exact = 30 * torch.tanh(hidden.flatten(0, 1).double() @ head.double().T / 30)
    # The product is rounded to bfloat16; what comes after it is not.
    torch.testing.assert_close(scores.nll.flatten().double(), truth(exact, target.flatten()), rtol=1e-2, atol=5e-2)


def record(monkeypatch) -> list[torch.Tensor]:
    """The logits of every call of the kernel."""
    seen, score = [], native.logits.score_rows

    def recording(logits, target):
        seen.append(logits)
        return score(logits, target)

    monkeypatch.setattr(native.logits, "score_rows", recording)
    return seen


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.long)),
        (torch._efficientzerotensor((3, 5)), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 5), torch._efficientzerotensor((3,), dtype=torch.long)),
        (torch.zeros(3, 5), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(3, 5), torch.zeros(3, 1, dtype=torch.long)),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long, device="meta")),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
    ],
)
def test_what_the_kernel_may_not_read_is_left_to_torch(logits, target):
    assert native.score_backend(logits, target) is None


def test_zeros_without_memory_are_scored():
    scores = score_tokens(torch._efficientzerotensor((3, 5)), torch.tensor([0, 1, 4]))
    torch.testing.assert_close(scores.nll, torch.full((3,), 5.0).log())


def test_transformed_functions_are_scored_by_torch():
    """torch.func's tensors have no data of their own."""
    logits, target = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    expected = torch.stack([truth(rows, ids) for rows, ids in zip(logits, target, strict=True)]).float()

    def nll(logits, target):
        return score_tokens(logits, target).nll

    torch.testing.assert_close(torch.vmap(nll)(logits, target), expected)
    torch.testing.assert_close(torch.vmap(nll, in_dims=(None, 0))(logits[0], target[:1]), expected[:1])
    assert torch.func.grad(lambda rows: nll(rows, target[0]).sum())(logits[0]).shape == (4, 7)
