"""Scores of hidden states without their logits in memory, for when these don't fit.

A program multiplies `ROWS` rows with `CLASSES` classes at a time, `TILES` times, in float32 accumulators, and keeps the
numbers of `rows.py` for this part of the vocabulary; `join_segments` joins the parts. The order in which a tensor core and
`tl.sum` add is set by the sizes alone, which are constants.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from xent_metrics_triton.arithmetic import FLOOR, NUMERICS, exp_of_negative
from xent_metrics_triton.rows import join, partial_results, shaped_logits

__all__ = ["SIZES", "can_give", "score_classes", "score_fused"]

SIZES = {
    2: {"ROWS": 128, "CLASSES": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3},  # by the bytes of a number
    4: {"ROWS": 64, "CLASSES": 64, "DEPTH": 32, "num_warps": 4, "num_stages": 2},
}
TILES = 4
_NEIGHBOURS = 8  # parts of the vocabulary that run side by side, so that they share rows in the cache
_INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["num_rows", "scale", "softcap"])
def score_classes(
    hidden, weight, bias, target, maxima, sums, firsts, moments, squares, target_logits,
    num_rows, vocab_size, width, row_stride, state_stride, class_stride, weight_stride, scale, softcap,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, TILES: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """The numbers of some rows and one part of the vocabulary: `maxima` … `squares` are (parts, rows)."""
    blocks = tl.cdiv(num_rows, ROWS)
    parts = tl.cdiv(vocab_size, CLASSES * TILES)
    group = tl.program_id(0) // (NEIGHBOURS * blocks)
    place = tl.program_id(0) % (NEIGHBOURS * blocks)
    size = tl.minimum(parts - group * NEIGHBOURS, NEIGHBOURS)
    part = group * NEIGHBOURS + place % size
    row = (place // size) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    wanted = tl.load(target + row, mask=is_row, other=-1).to(tl.int32)
    states = hidden + row.to(tl.int64)[:, None] * row_stride
    depth = tl.arange(0, DEPTH)

    top = tl.full((ROWS,), -_INFINITY, tl.float32)
    first = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    square = tl.zeros((ROWS,), tl.float32)
    target_logit = tl.zeros((ROWS,), tl.float32)
    invalid = tl.zeros((ROWS,), tl.int32)
    for tile in range(TILES):
        column = (part * TILES + tile) * CLASSES + tl.arange(0, CLASSES)
        is_class = column < vocab_size
        classes = weight + column.to(tl.int64)[None, :] * class_stride
        x = tl.zeros((ROWS, CLASSES), tl.float32)
        for start in range(0, width, DEPTH):
            k = start + depth
            a = tl.load(states + k[None, :] * state_stride, mask=is_row[:, None] & (k < width)[None, :], other=0.0)
            b = tl.load(classes + k[:, None] * weight_stride, mask=is_class[None, :] & (k < width)[:, None], other=0.0)
            x = tl.dot(a, b, x, input_precision="ieee")
        if bias is not None:
            x = shaped_logits(x, tl.load(bias + column, mask=is_class, other=0.0)[None, :], None, None)
        x = tl.where(is_class[None, :], shaped_logits(x, None, scale, softcap), -_INFINITY)
        invalid |= tl.max(((x != x) | (x == _INFINITY)).to(tl.int32), axis=1)
        peak = tl.max(x, axis=1)
        at = tl.min(tl.where(x == peak[:, None], column[None, :], vocab_size), axis=1)
        first = tl.where(peak > top, at, first)
        new = tl.maximum(top, peak)
        reference = tl.where(new == -_INFINITY, 0.0, new)
        fade = exp_of_negative(top - reference)
        shifted = tl.maximum(x - reference[:, None], FLOOR)
        e = exp_of_negative(shifted)
        is_target = column[None, :] == wanted[:, None]
        target_logit += tl.sum(tl.where(is_target, x, 0.0), axis=1)
        if moments is not None:
            moment = (moment + total * tl.maximum(top - reference, FLOOR)) * fade + tl.sum(e * shifted, axis=1)
        if squares is not None:
            others = tl.where(is_target, 0.0, e)
            square = square * (fade * fade) + tl.sum(others * others, axis=1)
        total = total * fade + tl.sum(e, axis=1)
        top = new

    at = part.to(tl.int64) * num_rows + row
    tl.store(maxima + at, tl.where(invalid > 0, _INFINITY, top), mask=is_row)
    tl.store(sums + at, total.to(tl.float64), mask=is_row)
    tl.store(firsts + at, first, mask=is_row)
    if moments is not None:
        tl.store(moments + at, moment.to(tl.float64), mask=is_row)
    if squares is not None:
        tl.store(squares + at, square.to(tl.float64), mask=is_row)
    here = wanted // (CLASSES * TILES) == part  # one program owns each target
    tl.store(target_logits + row, target_logit, mask=is_row & here)


def can_give(wanted: Collection[str]) -> bool:
    """False for the rank: the target's logit isn't known before the others."""
    return "target_rank" not in wanted


def score_fused(hidden: Tensor, head: Any, target: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """The scores of hidden states ``(N, H)``, without ``target_rank``."""
    sizes = SIZES[hidden.element_size()]
    (num_rows, width), vocab_size, weight = hidden.shape, head.vocab_size, head.weight
    segments = triton.cdiv(vocab_size, sizes["CLASSES"] * TILES)
    parts = partial_results(num_rows, segments, hidden.device, wanted)
    parts["firsts"], parts["aheads"] = parts["aheads"], None
    score_classes[(segments * triton.cdiv(num_rows, sizes["ROWS"]),)](
        hidden, weight, head.bias, target, parts["maxima"], parts["sums"], parts["firsts"], parts["moments"],
        parts["squares"], parts["target_logits"], num_rows, vocab_size, width, *hidden.stride(), *weight.stride(),
        head.scale, head.softcap, TILES=TILES, NEIGHBOURS=_NEIGHBOURS, **sizes, **NUMERICS,
    )  # fmt: skip
    return join(parts, target, wanted)
