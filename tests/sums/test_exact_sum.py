"""Exact sums: against rational numbers, in any order and tree, up to the limit, and an error beyond it."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from xent_metrics.sums import exact_sum
from xent_metrics.sums.exact_sum import carry, exact_sum_by_bin, merge, overflowed, to_float, to_fraction

UNIT = Fraction(1, 2**64)
LIMIT = 2**78
inf, nan = float("inf"), float("nan")

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**61), max_value=2.0**61)
float64s = st.floats(allow_nan=False, allow_infinity=False, min_value=-(2.0**61), max_value=2.0**61)


def row_of(value: Fraction | int) -> torch.Tensor:
    """The carried row that stands for a multiple of 2^-64."""
    units = int(value / UNIT)
    assert units * UNIT == value
    limbs = [units >> 32 * place & (2**32 - 1) for place in range(3)] + [units >> 96]
    return torch.tensor([*limbs, 0, 0, 0, 0])


def rounded(value: float) -> Fraction:
    """The nearest multiple of 2^-64, ties to even."""
    return Fraction(round(Fraction(value) / UNIT)) * UNIT


@given(st.lists(float64s, max_size=30), st.randoms(use_true_random=False))
@example([2.0**61, 2.0**-64, -(2.0**61)], random.Random(0))
@example([-(2.0**-64)], random.Random(0))
@example([2.0**-65, 3 * 2.0**-65, -(2.0**-65), 5e-324], random.Random(0))
def test_a_sum_is_the_rational_sum_of_the_rounded_values(values, chance):
    want = sum(map(rounded, values), Fraction(0))
    row = exact_sum.exact_sum(torch.tensor(values, dtype=torch.float64))
    assert to_fraction(row) == want
    assert torch.equal(row, row_of(want))
    chance.shuffle(values)
    assert torch.equal(exact_sum.exact_sum(torch.tensor(values, dtype=torch.float64)), row)


@given(st.lists(float32s.filter(lambda x: x == 0 or abs(x) >= 2.0**-41), max_size=30))
@example([-(2.0**-40 + 2.0**-63), 2.0**60])
def test_float32_values_are_not_rounded_at_all(values):
    assert to_fraction(exact_sum.exact_sum(torch.tensor(values))) == sum(map(Fraction, values), Fraction(0))


@given(st.lists(st.integers(-(2**61), 2**61), max_size=30))
def test_integers_are_exact(values):
    row = exact_sum.exact_sum(torch.tensor(values, dtype=torch.int64))
    assert to_fraction(row) == sum(values)
    assert torch.equal(row, row_of(sum(values)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_shape_sums(dtype):
    values = torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    assert to_fraction(exact_sum.exact_sum(values)) == 4
    assert to_fraction(exact_sum.exact_sum(values.T)) == 4
    assert to_fraction(exact_sum.exact_sum(values[0, 0])) == 1
    assert not exact_sum.exact_sum(values[:0]).any()


@given(st.lists(float64s, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_partition_order_and_merge_tree_gives_the_same_bits(values, chance):
    whole = exact_sum.exact_sum(torch.tensor(values, dtype=torch.float64))
    chance.shuffle(values)
    cuts = sorted(chance.choices(range(len(values) + 1), k=chance.randrange(6)))
    pieces = [values[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    rows = [exact_sum.exact_sum(torch.tensor(piece, dtype=torch.float64)) for piece in pieces]
    while len(rows) > 1:
        chance.shuffle(rows)
        k = chance.randint(2, min(3, len(rows)))
        rows = [merge(torch.stack(rows[:k])), *rows[k:]]
    assert torch.equal(rows[0], whole)


@given(st.integers(-LIMIT * 2**64, LIMIT * 2**64).map(lambda units: units * UNIT))
@example(-UNIT)
@example(UNIT)
@example(-(Fraction(10) ** -10) // UNIT * UNIT)
@example(-1 + UNIT)
@example(2**32 - UNIT)
@example(-(2**53) - UNIT)
def test_the_float_is_within_one_ulp_of_the_sum(value):
    got = to_float(row_of(value)).item()
    spacing = Fraction(torch.tensor(float(value), dtype=torch.float64).abs().nextafter(torch.tensor(inf)).item()) - abs(
        Fraction(float(value))
    )
    assert abs(Fraction(got) - value) <= spacing
    assert (got < 0) == (value < 0)
    assert to_float(row_of(-value)).item() == -got


@given(st.lists(st.tuples(float64s, st.integers(0, 4)), max_size=30))
def test_bins_are_sums_of_their_own(pairs):
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    bins = torch.tensor([index for _, index in pairs], dtype=torch.int64)
    rows = exact_sum_by_bin(values, bins, 5)
    for index in range(5):
        assert torch.equal(rows[index], exact_sum.exact_sum(values[bins == index]))


def test_nan_and_infinities_are_counted_not_converted():
    row = exact_sum.exact_sum(torch.tensor([1.5, nan, inf, inf, -inf, nan, nan]))
    assert row[4:7].tolist() == [3, 2, 1]
    assert to_fraction(row) == Fraction(3, 2)
    assert to_float(row).isnan()
    assert to_float(row, finite_only=True) == 1.5
    assert to_float(exact_sum.exact_sum(torch.tensor([1.0, inf]))) == inf
    assert to_float(exact_sum.exact_sum(torch.tensor([1.0, -inf]))) == -inf
    assert to_float(exact_sum.exact_sum(torch.tensor([inf, -inf]))).isnan()
    assert not overflowed(row)


def test_counts_pass_two_to_the_24_and_ten_to_the_15():
    one = exact_sum.exact_sum(torch.ones(1))
    assert to_float(merge(torch.stack([row_of(2**24), one]))) == 2**24 + 1
    assert to_float(merge(torch.stack([row_of(10**15), one]))) == 10**15 + 1
    # 10^15 tokens of 700 nats each, and one token more
    total = merge(torch.stack([row_of(700 * 10**15), exact_sum.exact_sum(torch.tensor([0.25]))]))
    assert to_fraction(total) == 700 * 10**15 + Fraction(1, 4)
    ones = torch.ones(2**24 + 1, dtype=torch.bool)
    assert to_float(exact_sum.exact_sum(ones)) == 2**24 + 1


@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_limit_is_counted_and_never_wraps(sign):
    edge = row_of(sign * (LIMIT - UNIT))
    assert not overflowed(carry(edge))
    unit = row_of(sign * UNIT)
    at_limit = merge(torch.stack([edge, unit]))
    assert to_fraction(at_limit) == sign * LIMIT
    far = at_limit
    for _ in range(70):  # doubling 70 times would wrap int64 many times over
        far = merge(torch.stack([far, far]))
    assert overflowed(far)
    assert (to_float(far) > 0) == (sign > 0)
    assert overflowed(merge(torch.stack([far, row_of(0)])))


def test_a_merge_of_very_many_states_is_checked_too():
    full = row_of(LIMIT - 2**32).expand(2**18, 8)  # 2^18 times 2^46 in the top limb is past int64
    assert overflowed(merge(full))
    many = row_of(3).expand(2**18, 2, 8)
    assert to_float(merge(many)).tolist() == [3 * 2**18] * 2


@pytest.mark.parametrize("value", [2.0**62, -(2.0**62), 3e38, -3e38, 1e300])
def test_a_single_value_beyond_the_range_is_counted(value):
    row = exact_sum.exact_sum(torch.tensor([value, 1.0], dtype=torch.float64))
    assert overflowed(row)
    assert row[7] == 1
    assert to_fraction(row) == 1


def test_the_empty_sum_is_the_identity():
    row = exact_sum.exact_sum(torch.randn(100) * 1e6)
    empty = exact_sum.exact_sum(torch.zeros(0))
    assert not empty.any()
    assert torch.equal(merge(torch.stack([row, empty])), row)
    assert torch.equal(carry(row), row)


def float32s_of_all_exponents():
    """Both signs, all exponents (subnormal numbers, infinities and nan among them), and mantissas at and around edges."""
    powers = 2 ** torch.arange(23)
    edges = [torch.arange(9), 2**23 - 1 - torch.arange(9), powers, powers - 1, (powers + 1).clamp(max=2**23 - 1)]
    mantissas = torch.cat([*edges, torch.randint(2**23, (64,))])
    bits = (torch.arange(256)[:, None] << 23 | mantissas).reshape(-1).int()
    return torch.cat([bits, bits | -(2**31)]).view(torch.float32)


def test_every_kind_of_float32_is_the_nearest_multiple_of_the_unit():
    values = float32s_of_all_exponents()
    rows = exact_sum.exact(values)
    inside = values.abs() < 2.0**62
    for value, row in zip(values[inside].tolist(), rows[inside], strict=True):
        assert torch.equal(row, row_of(rounded(value))), value
    outside, special = values[~inside], rows[~inside]
    assert not special[:, :4].any()
    kinds = [outside.isnan(), outside == inf, outside == -inf, outside.isfinite()]
    assert torch.equal(special[:, 4:], torch.stack(kinds, dim=-1).long())


def test_a_float32_has_the_sums_of_the_same_number_in_float64_and_bins_those_of_any_dtype():
    values = torch.cat(
        [float32s_of_all_exponents(), torch.randint(-(2**31), 2**31, (10**5,)).int().view(torch.float32)]
    )
    assert torch.equal(exact_sum.exact(values), exact_sum.exact(values.double()))
    bins = torch.randint(7, values.shape)
    assert torch.equal(exact_sum_by_bin(values, bins, 7), exact_sum_by_bin(values.double(), bins, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_its_float64(dtype):
    values = torch.arange(-(2**15), 2**15).short().view(dtype)
    assert torch.equal(exact_sum.exact(values), exact_sum.exact(values.double()))


@given(st.lists(st.floats(-(2.0**60), 2.0**60), min_size=1, max_size=20))
def test_what_is_rounded_away_is_what_is_missing_from_the_sum(values):
    tensor = torch.tensor(values, dtype=torch.float64)
    rest = exact_sum.rounded_away(tensor)
    assert (rest.abs() <= 0.5).all()
    missing = sum(map(Fraction, values)) - exact_sum.to_fraction(exact_sum.exact_sum(tensor))
    assert missing == sum(map(Fraction, rest.tolist())) * Fraction(exact_sum.FINEST)
