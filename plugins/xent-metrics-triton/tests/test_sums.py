"""Exact sums have the bits of `xent_metrics.sums.exact_sum`, whatever the values, the bins and the blocks."""

from __future__ import annotations

import pytest
import torch
import xent_metrics_triton as plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xent_metrics_triton import sums

from xent_metrics.sums import exact_sum

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
SPECIAL = torch.tensor(
    [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 2.0**62, -(2.0**62), 2.0**61, 3e38, 1e300, 2.0**-64, 2.0**-65, 3 * 2.0**-65,
     -(2.0**-65), -3 * 2.0**-65, 5e-324, -1.0, 1 - 2.0**-53, 2.0**32 - 1, -(2.0**32)],
    dtype=torch.float64,
)  # fmt: skip


def assert_exact(values, bins=None, num_bins=1):
    found = plugin.exact_sums_backend(values, bins, num_bins)
    assert found is not None
    expected = (
        exact_sum.exact_sums(values)[:, None] if bins is None else exact_sum.exact_sums_by_bin(values, bins, num_bins)
    )
    assert torch.equal(found, expected)


def numbers(dtype, rows, size):
    """Values of many magnitudes, among them all special ones that the dtype has."""
    if dtype in WHOLE:
        return torch.randint(-(2**40), 2**40, (rows, size)).to(dtype)
    values = torch.randn(rows, size, dtype=torch.float64) * torch.logspace(-25, 18, size, dtype=torch.float64)
    values[0, : len(SPECIAL)] = SPECIAL[:size]
    return values.to(dtype)


@pytest.mark.parametrize("dtype", FLOATS + WHOLE, ids=str)
def test_sums_of_every_dtype(dtype):
    assert_exact(numbers(dtype, 3, 2500))
    assert_exact(numbers(dtype, 1, 1))


@pytest.mark.parametrize("num_bins", [1, 2, 15, 32, 33, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_sums_by_bin(dtype, num_bins):
    assert_exact(numbers(dtype, 2, 700), torch.randint(num_bins, (700,)), num_bins)


def test_of_many_sums_each_is_carried(monkeypatch):
    """The last program carries few sums, and `carry_sums` many."""
    values, bins = numbers(torch.float32, 2, 300), torch.randint(700, (300,))
    carried = []
    monkeypatch.setattr(sums, "carry_sums", Recording(sums.carry_sums, carried))
    assert_exact(values, bins, 700)
    assert carried == [(11,)]
    assert_exact(values, bins % 400, 400)
    assert carried == [(11,)]


class Recording:
    """A kernel that remembers its grids."""

    def __init__(self, kernel, grids):
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


@pytest.mark.parametrize(("rows", "size", "num_bins"), [(70_000, 3, None), (2, 9_000_000, 2)])
def test_any_number_of_sums_and_of_values_has_a_grid(rows, size, num_bins, monkeypatch):
    """CUDA takes 2^31 − 1 programs in the first dimension of a grid, and 65,535 in the others."""

    class Nothing:
        def __getitem__(self, grid):
            return lambda *given, **options: None

    grids = []
    monkeypatch.setattr(sums, "add_values", Recording(Nothing(), grids))
    bins = None if num_bins is None else torch.zeros(1, dtype=torch.long).expand(size)
    sums.exact_sums(torch.zeros(1, 1).expand(rows, size), bins, num_bins or 1)
    [(programs, *others)] = grids
    assert programs > 65_535
    assert all(number <= 65_535 for number in others)


def test_views_are_read_where_they_lie():
    values = numbers(torch.float32, 1500, 3).T
    bins = torch.randint(7, (3000,))[::2]
    assert_exact(values)
    assert_exact(values, bins, 7)
    assert_exact(values[:, ::2], bins[::2], 7)
    assert_exact(values[:1].expand(3, 1500), bins, 7)


def test_a_sum_that_leaves_its_range_is_counted():
    largest = torch.full((1, 70_000), 2**62 - 1, dtype=torch.int64)
    assert_exact(largest)
    assert_exact(-largest)
    assert int(plugin.exact_sums_backend(largest, None, 1)[0, 0, 7]) == 1


@given(values=st.lists(st.floats(width=64), min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_floats(values):
    values = torch.tensor([values], dtype=torch.float64)
    assert_exact(values)
    assert_exact(values.float(), torch.arange(values.shape[1]) % 3, 3)


@pytest.mark.parametrize(
    ("values", "bins", "num_bins"),
    [
        (torch.zeros(2, 0), None, 1),
        (torch.zeros(3), None, 1),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 1),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int32), 1),
        (torch.zeros(2, 3, dtype=torch.complex64), None, 1),
        (torch.zeros(2, 3, device="meta"), None, 1),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long, device="meta"), 1),
    ],
)
def test_what_the_kernel_does_not_take_is_left_to_torch(values, bins, num_bins):
    assert plugin.exact_sums_backend(values, bins, num_bins) is None
