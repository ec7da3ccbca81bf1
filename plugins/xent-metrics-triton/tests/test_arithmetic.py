"""exp and tanh against float64, and sums that are trees of pairs."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from xent_metrics_triton import arithmetic
from xent_metrics_triton.arithmetic import add_lanes, add_pairs, maximum_of_lanes, maximum_of_pairs


@triton.jit
def apply(values, results, TANH: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(values + place)
    tl.store(results + place, arithmetic.tanh(x) if TANH else arithmetic.exp_of_negative(x))


@triton.jit
def fold(values, results, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, 1 << LEVELS)
    x = tl.load(values + row[:, None] * (1 << LEVELS) + column[None, :])
    tl.store(results + row, add_pairs(x, ROWS, LEVELS))
    tl.store(results + ROWS + row, maximum_of_pairs(x, ROWS, LEVELS))
    first = tl.load(values + column)
    tl.store(results + 2 * ROWS + tl.arange(0, 1), add_lanes(first, LEVELS))
    tl.store(results + 2 * ROWS + 1, maximum_of_lanes(first))


def of(values, **kind):
    results = torch.empty_like(values)
    apply[(len(values) // 2**16,)](values, results, SIZE=2**16, TANH=kind.get("tanh", False))
    return results


@triton.jit
def fuse(results):
    x = tl.load(results)
    tl.store(results, tl.fma(x, x, -1.0))


def is_fused():
    """Whether the interpreter rounds `tl.fma` once, as GPUs do. Triton 3.6's rounds the product, too, and keeps nan in maxima."""
    result = torch.tensor([1 + 2**-12])
    fuse[(1,)](result)
    return float(result) == 2**-11 + 2**-24


def test_exp_is_within_its_bound_and_exactly_one_at_zero():
    x = torch.cat([torch.linspace(-86, 0, 2**19), -torch.logspace(-30, 1.9, 2**19)])
    error = (of(x).double() / x.double().exp() - 1).abs()
    assert float(error.max()) < (8e-8 if is_fused() else 4e-6)
    zeros = torch.zeros(2**16)
    zeros[1] = -0.0
    assert torch.equal(of(zeros), torch.ones(2**16))


def test_exp_of_anything_below_the_floor_is_that_of_the_floor():
    x = torch.full((2**16,), -86.0)
    x[1:5] = torch.tensor([-1e4, -3e38, -torch.inf, torch.nan if is_fused() else -87])
    assert torch.equal(of(x), of(torch.full((2**16,), -86.0)))
    assert 0 < float(of(x)[0]) < 5e-38


def test_tanh_has_a_small_relative_error_on_both_sides_of_its_switch():
    x = torch.cat([torch.linspace(-12, 12, 2**18), torch.logspace(-30, 0.3, 2**18), torch.linspace(0.62, 0.63, 2**16)])
    error = (of(x, tanh=True).double() / x.double().tanh() - 1).abs()
    assert float(error[x != 0].max()) < 1.8e-7
    ends = torch.zeros(2**16)
    ends[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert of(ends, tanh=True)[:2].tolist() == [1.0, -1.0]
    assert bool(of(ends, tanh=True)[2].isnan())


def test_sums_add_neighbours_then_neighbouring_sums():
    x = torch.randn(4, 64) * torch.logspace(-3, 3, 64)
    results = torch.empty(10)
    fold[(1,)](x, results, ROWS=4, LEVELS=6)
    tree = x.numpy()
    while tree.shape[1] > 1:
        tree = tree[:, ::2] + tree[:, 1::2]
    assert np.array_equal(results[:4].numpy(), tree[:, 0])
    assert torch.equal(results[4:8], x.amax(1))
    assert results[8] == results[0]
    assert results[9] == results[4]
    assert not torch.equal(results[:4], x.sum(1))  # another order has other bits, so this test can fail


def test_maxima_keep_nan():
    x = torch.randn(4, 64)
    x[:, 33] = torch.nan
    results = torch.empty(10)
    fold[(1,)](x, results, ROWS=4, LEVELS=6)
    assert results[4:8].isnan().all()
    assert results[9].isnan()
