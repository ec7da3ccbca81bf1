"""Exact sums: values become limbs of integers, and integers may be added in any order, so blocks add theirs atomically.

`add_values` has one program per block of values. `_limbs` does what `xent_metrics.sums.exact_sum` does, float64 step by
step. Of few bins, a program first adds up its own values of each bin. The last program to finish, known by a ticket, puts
the sums into their carried form. Of many sums that would take one program too long, so `carry_sums` follows.

On a GPU that makes a memset and one kernel, or two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent_metrics_triton.arithmetic import NUMERICS

__all__ = ["add_values", "carry_sums", "exact_sums"]

LIMBS = 8  # numbers in a sum
_BLOCK = 1024  # values per program …
_BINNED_BLOCK = 128  # … and where each value is compared with each bin
FEW_BINS = 32
_SUMS_OF_LAST = 1024  # sums that the last program carries by itself
_SUMS_PER_BLOCK = 128
_LIMIT = tl.constexpr(4611686018427387904.0)  # 2^62: a value at or beyond it is counted, not added
_TOP = tl.constexpr(1 << 46)
_MASK = tl.constexpr((1 << 32) - 1)
_BITS = tl.constexpr(32)
_TWO_32 = tl.constexpr(4294967296.0)
_TWO_52 = tl.constexpr(4503599627370496.0)


@triton.jit
def rounded(x):
    """The nearest integer to a float64 x, |x| ≤ 2^32, ties to even: at 2^52 a unit is 1."""
    up = x + _TWO_52
    down = x - _TWO_52
    return tl.where(x < 0, down + _TWO_52, up - _TWO_52)


@triton.jit
def limbs_of(values):
    """The eight numbers of each value, int64."""
    zero = tl.zeros(values.shape, tl.int64)
    if values.dtype.is_floating():
        value = values.to(tl.float64)
        size = tl.abs(value)
        in_range = size < _LIMIT  # False for nan
        nan, plus, minus = value != value, value == float("inf"), value == -float("inf")
        too_large = (size >= _LIMIT) & (size < float("inf"))
        value = tl.where(in_range, value, 0.0)
        whole = value.to(tl.int64)  # towards zero
        fraction = (value - whole.to(tl.float64)) * _TWO_32  # exact
        upper = fraction.to(tl.int64)
        lower = rounded((fraction - upper.to(tl.float64)) * _TWO_32).to(tl.int64)  # the only rounding
        counts = (nan.to(tl.int64), plus.to(tl.int64), minus.to(tl.int64), too_large.to(tl.int64))
    else:
        whole = values.to(tl.int64)
        lower, upper, counts = zero, zero, (zero, zero, zero, zero)
    return (lower, upper, whole & _MASK, whole >> _BITS, counts[0], counts[1], counts[2], counts[3])


@triton.jit
def carry(sums, index, mask):
    """Put the sums at `index` into their carried form."""
    at = sums + index.to(tl.int64) * 8
    # Volatile: another multiprocessor's atomics are in the second cache, not in the first.
    limb0 = tl.load(at, mask=mask, other=0, volatile=True)
    limb1 = tl.load(at + 1, mask=mask, other=0, volatile=True) + (limb0 >> _BITS)
    limb2 = tl.load(at + 2, mask=mask, other=0, volatile=True) + (limb1 >> _BITS)
    limb3 = tl.load(at + 3, mask=mask, other=0, volatile=True) + (limb2 >> _BITS)
    beyond = tl.load(at + 7, mask=mask, other=0, volatile=True)
    beyond = tl.minimum(beyond + (tl.abs(limb3) > _TOP).to(tl.int64), _TOP)
    tl.store(at, limb0 & _MASK, mask=mask)
    tl.store(at + 1, limb1 & _MASK, mask=mask)
    tl.store(at + 2, limb2 & _MASK, mask=mask)
    tl.store(at + 3, tl.minimum(tl.maximum(limb3, -_TOP), _TOP), mask=mask)
    tl.store(at + 7, beyond, mask=mask)


@triton.jit(do_not_specialize=["num_values", "num_bins", "num_sums"])
def add_values(
    values, bins, sums, finished, num_values, num_bins, num_sums, row_stride, value_stride, bin_stride,
    BLOCK: tl.constexpr, BINS: tl.constexpr, CARRY: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Add a block of one row of values to `sums` (rows, bins, 8); BINS is 1, a power of two ≥ num_bins, or 0 for many."""
    blocks = tl.cdiv(num_values, BLOCK)
    row = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = place < num_values
    value = tl.load(values + row.to(tl.int64) * row_stride + place.to(tl.int64) * value_stride, mask=mask, other=0)
    limbs = limbs_of(value)
    sums_of_row = sums + row.to(tl.int64) * num_bins * 8
    if BINS == 1:
        for limb in tl.static_range(8):
            tl.atomic_add(sums_of_row + limb, tl.sum(limbs[limb], axis=0), sem="relaxed")
    else:
        bin_of = tl.load(bins + place.to(tl.int64) * bin_stride, mask=mask, other=-1)
        if BINS == 0:
            for limb in tl.static_range(8):
                some = (bin_of >= 0) & (bin_of < num_bins) & (limbs[limb] != 0)
                tl.atomic_add(sums_of_row + bin_of * 8 + limb, limbs[limb], mask=some, sem="relaxed")
        else:
            each = tl.arange(0, BINS)
            here = bin_of[:, None] == each[None, :].to(tl.int64)
            for limb in tl.static_range(8):
                total = tl.sum(tl.where(here, limbs[limb][:, None], 0), axis=0)
                tl.atomic_add(
                    sums_of_row + each * 8 + limb, total, mask=(each < num_bins) & (total != 0), sem="relaxed"
                )
    if CARRY:
        tl.debug_barrier()  # all threads have added before the ticket is drawn
        ticket = tl.atomic_add(finished, 1)
        if ticket == tl.num_programs(0) - 1:
            for start in range(0, num_sums, SUMS):
                index = start + tl.arange(0, SUMS)
                carry(sums, index, index < num_sums)


@triton.jit(do_not_specialize=["num_sums"])
def carry_sums(sums, num_sums, SUMS: tl.constexpr):
    """Put all sums into their carried form."""
    index = tl.program_id(0) * SUMS + tl.arange(0, SUMS)
    carry(sums, index, index < num_sums)


def exact_sums(values: Tensor, bins: Tensor | None, num_bins: int) -> Tensor:
    """The carried sums of values ``(K, N)`` by bin, ``(K, num_bins, 8)``."""
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    rows, num_values = values.shape
    num_sums = rows * num_bins
    by_value = bins is None or num_bins > FEW_BINS
    block = _BLOCK if by_value else _BINNED_BLOCK
    few = 1 if bins is None else triton.next_power_of_2(max(num_bins, 2))
    memory = torch.zeros(num_sums * LIMBS + 1, dtype=torch.int64, device=values.device)  # the sums and the tickets
    sums, finished = memory[:-1], memory[-1:]
    last_carries = num_sums <= _SUMS_OF_LAST
    add_values[(rows * triton.cdiv(num_values, block),)](  # of two dimensions, the second has at most 65,535
        values, bins, sums, finished, num_values, num_bins, num_sums, *values.stride(), 1 if bins is None else bins.stride(0),
        BLOCK=block, BINS=0 if by_value and bins is not None else few, CARRY=last_carries, SUMS=_SUMS_PER_BLOCK,
        num_warps=4, **NUMERICS,
    )  # fmt: skip
    if not last_carries:
        carry_sums[(triton.cdiv(num_sums, _SUMS_PER_BLOCK),)](
            sums, num_sums, SUMS=_SUMS_PER_BLOCK, num_warps=4, **NUMERICS
        )
    return sums.view(rows, num_bins, LIMBS)
