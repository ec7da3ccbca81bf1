"""Exact, order-free sums of per-token values.

A float sum depends on the order of its additions; an integer sum does not. Each value is written once as a
fixed-point integer with 64 fractional bits (exact for every float32 of magnitude 2^-41 or more, and for every
float64 of 2^-12 or more) and split into 32-bit limbs, so that from there on every addition is an integer addition.
A value is split in its own precision, so devices without float64 give the same bits.

A sum is one row of eight int64:

    limb 0..3   units of 2^-64, 2^-32, 1 and 2^32; limbs 0..2 are kept in [0, 2^32), limb 3 carries the sign
    4, 5, 6     how many values were nan, +inf, -inf: counted, never converted
    7           how often the sum left its range of ±2^78: an error when it is read, never a wrap

Rows are merged by `+` and a carry. The carried form of a sum is unique: equal sums have equal bits.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from xent_metrics.scoring.devices import widest_float

__all__ = [
    "FINEST", "ROW", "carry", "exact", "exact_sum", "exact_sum_by_bin", "exact_sums", "exact_sums_by_bin", "merge",
    "overflowed", "rounded_away", "to_float", "to_fraction",
]  # fmt: skip

ROW = 8
_BITS = 32
_MASK = (1 << _BITS) - 1
_TOP = 1 << 46  # limit of limb 3: ±2^78 in all …
_MOST = 1 << 16  # … so that this many rows can be added before the next carry
_LARGEST = float(2**62)  # a single value at or beyond this is counted as leaving the range
_SCALE = 2.0**_BITS
_UNITS = _SCALE**2  # per 1
#: The unit to which values are rounded.
FINEST = 1 / _UNITS


def exact_sum(values: Tensor) -> Tensor:
    """The exact sum of `values` (any shape; float, int or bool) as a carried row ``(8,)``.

    >>> row = exact_sum(torch.tensor([0.1, 0.2, 1e9, -1e9]))
    >>> float(to_float(row)) == float(torch.tensor(0.1).double() + torch.tensor(0.2).double())
    True
    """
    return exact_sums(values.reshape(1, -1))[0]


def exact_sums(values: Tensor) -> Tensor:
    """The exact sum of each row of `values`, ``(K, N)`` to ``(K, 8)``: the same bits as row by row, faster."""
    limbs, flags = _columns(values)
    return carry(torch.cat([limbs.sum(dim=-1), flags.sum(dim=-1)]).mT)


def exact_sum_by_bin(values: Tensor, bins: Tensor, num_bins: int) -> Tensor:
    """The exact sums of the `values` of each bin, ``(num_bins, 8)``; `bins` holds indices in ``[0, num_bins)``."""
    return exact_sums_by_bin(values.reshape(1, -1), bins, num_bins)[0]


def exact_sums_by_bin(values: Tensor, bins: Tensor, num_bins: int) -> Tensor:
    """As `exact_sum_by_bin`, of each row of `values` over the same bins ``(N,)``: ``(K, N)`` to ``(K, num_bins, 8)``."""
    kinds = len(values)
    columns = torch.cat(_columns(values)).reshape(ROW * kinds, -1)
    sums = torch.zeros(ROW * kinds, num_bins, dtype=torch.int64, device=values.device)
    sums = sums.index_add(1, bins.reshape(-1), columns)
    return carry(sums.reshape(ROW, kinds, num_bins).permute(1, 2, 0))


def exact(values: Tensor) -> Tensor:
    """Each value as the sum of itself alone, ``(…)`` to ``(…, 8)``."""
    return carry(torch.cat(_columns(values)).movedim(0, -1))


def rounded_away(values: Tensor) -> Tensor:
    """What a sum loses of each float, in units of `FINEST`: in [−½, ½], exact, and enough for another sum to hold the rest.

    >>> rounded_away(torch.tensor([1.0, 3 * 2.0**-66]))
    tensor([ 0.0000, -0.2500])
    """
    units = values * _UNITS
    return units - units.round()


def _columns(values: Tensor) -> tuple[Tensor, Tensor]:
    """The row of each value before any addition: limbs ``(4, …)`` int64, and flags for nan, +inf, −inf and too large.

    Scaling by a power of two, cutting off a fraction and subtracting the upper part of the same number are exact in any
    float, so float32 values are never widened.
    """
    if not values.is_floating_point():
        whole, zero = values.long(), torch.zeros_like(values, dtype=torch.int64)
        limbs = torch.stack([zero, zero, whole & _MASK, whole >> _BITS])
        return limbs, zero.bool().expand_as(limbs)
    value = values if values.dtype in (torch.float32, torch.float64) else values.float()
    finite = value.nan_to_num(0.0, 0.0, 0.0)
    large = finite.abs() >= _LARGEST
    flags = torch.stack([value.isnan(), value == torch.inf, value == -torch.inf, large])
    value = finite.masked_fill(large, 0.0)
    lowest = (value * _UNITS).round()  # the only rounding
    whole = torch.stack([lowest, value * _SCALE, value, value / _SCALE]).trunc()  # in units of each limb
    limbs = torch.cat([torch.sub(whole[:3], whole[1:], alpha=_SCALE), whole[3:]])
    return limbs.long(), flags


def carry(rows: Tensor) -> Tensor:
    """Rows ``(…, 8)`` in their unique form: each lower limb in ``[0, 2^32)``, the top limb within its limit."""
    limb0, limb1, limb2, limb3, *_, beyond = rows.unbind(-1)
    limb1 = limb1 + (limb0 >> _BITS)
    limb2 = limb2 + (limb1 >> _BITS)
    limb3 = limb3 + (limb2 >> _BITS)
    top = limb3.clamp(-_TOP, _TOP)
    beyond = (beyond + (limb3 != top)).clamp(max=_TOP)
    lower = torch.stack([limb0, limb1, limb2], dim=-1) & _MASK
    return torch.cat([lower, top[..., None], rows[..., 4:7], beyond[..., None]], dim=-1)


def merge(stacked: Tensor) -> Tensor:
    """Merge states ``(K, …, 8)`` along the first dimension, exactly and in any order."""
    while len(stacked) > _MOST:
        stacked = torch.stack([carry(part.sum(dim=0)) for part in torch.split(stacked, _MOST)])
    return carry(stacked.sum(dim=0))


def overflowed(rows: Tensor) -> Tensor:
    """Whether any of the rows ``(…, 8)`` left the range in which it is exact: a 0-d bool."""
    return (rows[..., 7] > 0).any()


def to_float(rows: Tensor, *, finite_only: bool = False) -> Tensor:
    """The sums as float64, ``(…, 8)`` to ``(…,)``; nan and infinities come back by IEEE rules unless `finite_only`.

    The result is within one unit in the last place of the exact sum and depends on nothing but the row. On a device without
    float64 it is a float32, within four units in the last place.
    """
    nan, plus, minus = rows[..., 4:7].unbind(-1)
    negative = rows[..., 3] < 0
    magnitude = carry(torch.where(negative[..., None], -rows, rows))  # −1 + (1 − ε) would lose a small ε
    limb0, limb1, limb2, limb3 = magnitude[..., :4].to(widest_float(rows.device)).unbind(-1)
    value = (limb3 * _SCALE + limb2) + (limb1 / _SCALE + limb0 / _UNITS)
    value = torch.where(negative, -value, value)
    if finite_only:
        return value
    value = torch.where(plus > 0, torch.inf, value)
    value = torch.where(minus > 0, -torch.inf, value)
    return torch.where((nan > 0) | ((plus > 0) & (minus > 0)), torch.nan, value)


def to_fraction(row: Tensor) -> Fraction:
    """The finite part of one row ``(8,)`` as an exact rational number (on the host)."""
    limbs = row.tolist()[:4]
    return Fraction(sum(limb << (_BITS * place) for place, limb in enumerate(limbs)), 1 << (2 * _BITS))
