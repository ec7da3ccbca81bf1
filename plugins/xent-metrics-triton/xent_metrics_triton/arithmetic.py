"""Float arithmetic in kernels whose bits are the same on every GPU and in Triton's interpreter.

Only operations that IEEE 754 defines to the last bit are used: +, −, ×, ÷ rounded to nearest, and fused multiply-adds that
are written out (`NUMERICS` keeps the compiler from making others). Triton's own `tl.exp` is an approximation of the
hardware, and the order in which its `tl.sum` adds depends on the layout of the tensor in threads, which Triton chooses by
the alignment of the data. So sums here are trees of pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "FLOOR",
    "NUMERICS",
    "add_lanes",
    "add_pairs",
    "exp_of_negative",
    "maximum",
    "maximum_of_lanes",
    "maximum_of_pairs",
    "tanh",
]

#: Options of every launch.
NUMERICS = {"enable_fp_fusion": False}

FLOOR = tl.constexpr(-86.0)  # exp(FLOOR) = 4.5e-38, and every smaller exp too: nothing beside the maximum's 1
_ROUND = tl.constexpr(12582912.0)  # 1.5 · 2^23 leaves the nearest integer in the low bits
_LOG2_E = tl.constexpr(1.4426950216293335)
_LN2_HIGH = tl.constexpr(0.6931471824645996)
_LN2_LOW = tl.constexpr(-1.9046542121259336e-09)


@triton.jit
def exp_of_negative(x):
    """exp(x) for x ≤ 0, with a relative error below 8e-8; exp(0) is exactly 1, and nan becomes exp(FLOOR)."""
    x = tl.maximum(x, FLOOR)
    shifted = tl.fma(x, _LOG2_E, _ROUND)
    k = shifted - _ROUND  # the nearest integer to x / ln 2
    f = tl.fma(k, -_LN2_HIGH, x)  # exact
    f = tl.fma(k, -_LN2_LOW, f)
    q = tl.fma(f, 0.0013821468455716968, 0.008368662558495998)  # minimax: e^f = 1 + f + f² q(f), to 3.2e-9
    q = tl.fma(q, f, 0.041668254882097244)
    q = tl.fma(q, f, 0.1666652113199234)
    q = tl.fma(q, f, 0.4999999403953552)
    e = tl.fma(tl.fma(q, f, 1.0), f, 1.0)
    bits = e.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)  # times 2^k
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def tanh(x):
    """tanh(x) with a relative error of a few units in the last place; nan stays nan (the polynomials are from Cephes)."""
    square = x * x
    p = tl.fma(square, -5.70498872745e-3, 2.06390887954e-2)
    p = tl.fma(p, square, -5.37397155531e-2)
    p = tl.fma(p, square, 1.33314422036e-1)
    p = tl.fma(p, square, -3.33332819422e-1)
    small = tl.fma(p * square, x, x)
    size = tl.abs(x)
    e = exp_of_negative(-2.0 * size)
    large = tl.div_rn(1.0 - e, 1.0 + e)
    large = tl.where(x < 0, -large, large)
    return tl.where(size < 0.625, small, tl.where(x == x, large, x))


@triton.jit
def maximum(a, b):
    """The larger one; nan if either is nan."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def add_pairs(x, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """The sums of the rows of x (ROWS, 2^LEVELS): neighbours are added, then neighbouring sums, and so on."""
    for level in tl.static_range(LEVELS):
        a, b = tl.split(tl.reshape(x, (ROWS, 1 << (LEVELS - 1 - level), 2)))
        x = a + b
    return tl.reshape(x, (ROWS,))


@triton.jit
def add_lanes(x, LEVELS: tl.constexpr):
    """The sum (1,) of x (2^LEVELS,), in the order of `add_pairs`, by `tl.sum` of two: no layout has another order of these."""
    for level in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, (1 << (LEVELS - 1 - level), 2)), axis=1)
    return x


@triton.jit
def maximum_of_pairs(x, ROWS: tl.constexpr, LEVELS: tl.constexpr):
    """The maxima of the rows of x (ROWS, 2^LEVELS); nan for a row that has a nan."""
    for level in tl.static_range(LEVELS):
        a, b = tl.split(tl.reshape(x, (ROWS, 1 << (LEVELS - 1 - level), 2)))
        x = maximum(a, b)
    return tl.reshape(x, (ROWS,))


@triton.jit
def maximum_of_lanes(x):
    """The maximum of x, one-dimensional; nan if there is a nan."""
    has_nan = tl.max((x != x).to(tl.int32), axis=0) > 0
    return tl.where(has_nan, float("nan"), tl.max(tl.where(x == x, x, -float("inf")), axis=0))
