"""Causal attention against float64 and torch's own; bits that depend on nothing but what a row sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import native as native_build
from torch.nn import functional as F

native = native_build.build()
level = native_build.every_level(native)


def attention(query, key, value, scale=None):
    """The plugin's own answer, which must not be None."""
    result = native.attention.causal_attention(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    assert result is not None
    return result


def assert_as_exact_as_torch(query, key, value, scale=None) -> None:
    """Not much further from float64 than torch's own float32 is, on the whole and at the worst, but for one step of float32."""
    options = {"is_causal": True, "enable_gqa": True, "scale": scale}
    truth = F.scaled_dot_product_attention(*(given.double() for given in (query, key, value)), **options)
    theirs = F.scaled_dot_product_attention(query, key, value, **options) - truth
    ours = attention(query, key, value, scale) - truth
    assert ours.shape == truth.shape
    for error, times in ((torch.norm, 2), (lambda off: off.abs().max(), 3)):  # 1.6 and 2.2 were seen in 400 draws
        assert float(error(ours)) <= times * float(error(theirs)) + torch.finfo(torch.float32).eps * float(error(truth))


def heads_of(batch, length, heads, dim, spread=1.0):
    """(B, H, S, D), with memory as of (B, S, H, D), as models have it."""
    return (torch.randn(batch, length, heads, dim) * spread).transpose(1, 2)


def random_heads(batch, length, heads, key_heads, dim, value_dim):
    return (
        heads_of(batch, length, heads, dim, 3.0),
        heads_of(batch, length, key_heads, dim),
        heads_of(batch, length, key_heads, value_dim),
    )


@pytest.mark.parametrize("length", [64, 65, 95, 96, 97, 255, 256, 257, 511, 513, 1000])
def test_attention_is_within_the_bound_at_every_edge_of_a_block(length):
    assert_as_exact_as_torch(*random_heads(2, length, 3, 1, 64, 64))


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim", "value_dim"),
    [(1, 1, 1, 1), (2, 2, 8, 33), (9, 3, 64, 64), (4, 1, 80, 96), (2, 1, 100, 7), (2, 2, 128, 256), (1, 1, 256, 128)],
)
def test_attention_takes_heads_of_any_number_and_size(heads, key_heads, dim, value_dim):
    assert_as_exact_as_torch(*random_heads(3, 130, heads, key_heads, dim, value_dim))


@given(length=st.integers(64, 700), seed=st.integers(0, 2**31), dim=st.integers(1, 140), spread=st.floats(0, 40))
def test_attention_is_within_the_bound_for_any_length(length, seed, dim, spread):
    torch.manual_seed(seed)
    query, key, value = (heads_of(1, length, 2, dim) for _ in range(3))
    query *= spread
    assert_as_exact_as_torch(query, key, value)


def test_attention_has_the_scale_that_it_is_given():
    assert_as_exact_as_torch(*random_heads(1, 70, 2, 2, 16, 16), scale=0.7)


def test_scores_of_any_size_leave_no_infinity():
    """The maximum grows from block to block, and falls, by far more than a float's exponent holds."""
    query, key = torch.zeros(2, 1, 1, 600, 4)
    query[..., 0] = 1.0
    for ramp in (torch.linspace(-1e4, 1e4, 600), torch.linspace(1e4, -1e4, 600), torch.full((600,), 1e30)):
        key[..., 0] = ramp
        assert_as_exact_as_torch(query, key, torch.randn(1, 1, 600, 5), scale=1.0)


def test_blocks_of_scores_of_minus_infinity_weigh_nothing():
    query, key, value = random_heads(1, 600, 1, 1, 4, 5)
    query[..., 0], key[..., 0] = 1e30, 0.0
    key[:, :, :300, 0] = -1e30
    expected = attention(query[:, :, 300:], key[:, :, 300:], value[:, :, 300:])
    found = attention(query, key, value)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, :, 300:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_a_nan_is_in_every_row_that_sees_it_and_in_no_other(place):
    given = dict(zip(("query", "key", "value"), random_heads(1, 300, 2, 2, 8, 8), strict=True))
    given[place][0, 1, 270, 3] = torch.nan
    rows = attention(**given).isnan().any(-1)
    expected = torch.zeros(1, 2, 300, dtype=torch.bool)
    expected[0, 1, 270 : 271 if place == "query" else None] = True
    if place == "value":  # 0 · nan is nan: rows of the same tile, whose weight for it is 0, may have it, as torch's do
        assert bool(rows[expected].all())
        assert not rows[:, :, :250].any()
    else:
        assert torch.equal(rows, expected)


def test_a_rows_bits_depend_on_what_it_sees_alone():
    query, key, value = random_heads(3, 400, 4, 2, 64, 48)
    whole = attention(query, key, value)
    for batch in range(3):
        assert torch.equal(
            attention(*(part[batch : batch + 1] for part in (query, key, value))), whole[batch : batch + 1]
        )
    for length in (64, 100, 257, 399):
        assert torch.equal(attention(*(part[:, :, :length] for part in (query, key, value))), whole[:, :, :length])
    assert torch.equal(attention(*(part.contiguous() for part in (query, key, value))), whole)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            assert torch.equal(attention(query, key, value), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_result_has_the_memory_that_a_model_wants_next():
    assert attention(*random_heads(2, 64, 4, 2, 8, 8)).transpose(1, 2).is_contiguous()


QUERY, KEY, VALUE = random_heads(1, 64, 2, 2, 8, 8)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        tuple(tensor[:, :, :63] for tensor in (QUERY, KEY, VALUE)),
        tuple(tensor.double() for tensor in (QUERY, KEY, VALUE)),
        tuple(tensor.bfloat16() for tensor in (QUERY, KEY, VALUE)),
        tuple(tensor[0] for tensor in (QUERY, KEY, VALUE)),
        tuple(tensor.to("meta") for tensor in (QUERY, KEY, VALUE)),
        tuple(torch.zeros(1, 2, 64, 257) for _ in range(3)),
        tuple(torch.zeros(1, 2, 64, 0) for _ in range(3)),
        tuple(torch.zeros(0, 2, 64, 8) for _ in range(3)),
        (QUERY.transpose(2, 3).contiguous().transpose(2, 3), KEY, VALUE),
        (torch._efficientzerotensor((1, 2, 64, 8)), KEY, VALUE),
    ],
)
def test_other_attention_is_left_to_torch(query, key, value):
    assert native.attention.causal_attention(query, key, value, 1.0) is None
