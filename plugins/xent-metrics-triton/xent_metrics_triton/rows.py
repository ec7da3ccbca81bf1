"""Scores of rows of logits in one read of them.

A row is cut into segments of 32,768 columns. `score_segments` has one program per row and segment, which keeps these
numbers of its columns (t is the target's logit), and `join_segments` joins the segments of each row in order:

    m = max x    Σ exp(x − m)    is any class ahead of the target?
    only if wanted: how many are ahead    Σ exp(x − m) (x − m)    Σ exp(x − m)² without the target

A program reads tiles of `LANES` × `DEPTH` columns. A lane is a place in the tile: the thread that has it holds all its
`DEPTH` columns, takes their maximum, and only then their terms. Terms are added in float32 within a lane and in float64
from there on.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent_metrics_triton.arithmetic import (
    FLOOR,
    NUMERICS,
    add_lanes,
    add_pairs,
    exp_of_negative,
    maximum,
    maximum_of_lanes,
    maximum_of_pairs,
    tanh,
)

__all__ = [
    "EXTRA_SCORES",
    "SHAPES",
    "THREADS",
    "TILES",
    "join",
    "join_segments",
    "partial_results",
    "score_rows",
    "score_segments",
    "shaped_logits",
]

THREADS = 128
WARPS = THREADS // (64 if torch.version.hip else 32)
SHAPES = {4: (512, 8), 2: (1024, 4)}  # LANES and DEPTH of a tile by bytes per logit: a lane's neighbours make 128 bits
TILES = 8  # per segment
_JOINED_ROWS = 128
#: The extra scores that can be had in the same read, by the names of their functions in xent_metrics.metrics.
EXTRA_SCORES = ("entropy", "squared_error", "squared_log_normaliser", "target_rank")
_INFINITY = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))


@triton.jit
def shaped_logits(x, bias, scale, softcap):
    """softcap · tanh(scale · (x + bias) / softcap) in float32; what is None is left out."""
    if bias is not None:
        x += bias.to(tl.float32)
    if scale is not None:
        x *= scale
    if softcap is not None:
        x = tanh(tl.div_rn(x, softcap)) * softcap
    return x


@triton.jit
def load_logits(places, bias, scale, softcap, column, mask):
    """The logits at `places`, which are some columns of a row, in float32; −inf where the mask is False."""
    x = tl.load(places, mask=mask, other=-_INFINITY).to(tl.float32)
    at = None
    if bias is not None:
        at = tl.load(bias + column, mask=mask, other=0.0)
    return tl.where(mask, shaped_logits(x, at, scale, softcap), -_INFINITY)


@triton.jit(do_not_specialize=["num_rows", "scale", "softcap"])
def score_segments(
    logits, target, bias, maxima, sums, aheads, moments, squares, target_logits,
    num_rows, vocab_size, row_stride, column_stride, scale, softcap,
    RANK: tl.constexpr, LANES: tl.constexpr, LANE_LEVELS: tl.constexpr, LEVELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The numbers of one segment of one row: `maxima` … `squares` are (segments, rows); moments and squares may be None."""
    DEPTH: tl.constexpr = 1 << LEVELS
    row = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    logits += row * row_stride
    wanted = tl.load(target + row)
    inside = (wanted >= 0) & (wanted < vocab_size)
    wanted = tl.where(inside, wanted, 0).to(tl.int32)
    target_logit = load_logits(logits + wanted.to(tl.int64) * column_stride, bias, scale, softcap, wanted, inside)
    tile = tl.arange(0, LANES)[:, None] + LANES * tl.arange(0, DEPTH)[None, :]

    top = tl.full((LANES,), -_INFINITY, tl.float32)
    total = tl.zeros((LANES,), tl.float64)
    ahead = tl.zeros((LANES,), tl.int32)
    moment = tl.zeros((LANES,), tl.float64)
    square = tl.zeros((LANES,), tl.float64)
    first = segment * (LANES * DEPTH * TILES)
    for start in range(first, tl.minimum(first + LANES * DEPTH * TILES, vocab_size), LANES * DEPTH):
        column = start + tile
        tile_start = logits + (tl.zeros((), tl.int64) + start) * column_stride
        x = load_logits(
            tile_start + tile.to(tl.int64) * column_stride, bias, scale, softcap, column, column < vocab_size
        )
        peak = maximum_of_pairs(x, LANES, LEVELS)
        if RANK:
            is_ahead = (x > target_logit) | ((x == target_logit) & (column < wanted))
            ahead += tl.sum(is_ahead.to(tl.int32), axis=1)
        else:
            if (start <= wanted) & (wanted < start + LANES * DEPTH):
                before = tl.max(tl.where(column < wanted, x, -_INFINITY), axis=1)
            else:
                before = tl.where(start < wanted, peak, -_INFINITY)
            ahead |= ((peak > target_logit) | (before == target_logit)).to(tl.int32)
        new = maximum(top, peak)
        reference = tl.where(new == -_INFINITY, 0.0, new)
        fade = exp_of_negative(top - reference).to(tl.float64)
        shifted = x - reference[:, None]
        e = exp_of_negative(shifted)
        if moments is not None:
            gap = tl.maximum(top - reference, FLOOR).to(tl.float64)
            moment = (moment + total * gap) * fade
            moment += add_pairs(e * tl.maximum(shifted, FLOOR), LANES, LEVELS).to(tl.float64)
        if squares is not None:
            square = square * (fade * fade)
            others = tl.where(column == wanted, 0.0, e)
            square += add_pairs(others * others, LANES, LEVELS).to(tl.float64)
        total = total * fade + add_pairs(e, LANES, LEVELS).to(tl.float64)
        top = new

    peak = maximum_of_lanes(top)
    gap = tl.maximum(top - tl.where(peak == -_INFINITY, 0.0, peak), FLOOR)
    weight = exp_of_negative(gap).to(tl.float64)
    at = segment.to(tl.int64) * num_rows + row + tl.arange(0, 1)
    tl.store(maxima + at, tl.zeros((1,), tl.float32) + peak)
    tl.store(sums + at, add_lanes(total * weight, LANE_LEVELS))
    if moments is not None:
        tl.store(moments + at, add_lanes((moment + total * gap) * weight, LANE_LEVELS))
    if squares is not None:
        tl.store(squares + at, add_lanes(square * (weight * weight), LANE_LEVELS))
    if RANK:
        tl.store(aheads + at, tl.zeros((1,), tl.int32) + tl.sum(ahead, axis=0))
    else:
        tl.store(aheads + at, tl.zeros((1,), tl.int32) + tl.max(ahead, axis=0))
    if segment == 0:
        tl.store(target_logits + row, tl.where(inside, target_logit, _NAN))


@triton.jit(do_not_specialize=["num_rows", "num_segments"])
def join_segments(
    maxima, sums, aheads, firsts, moments, squares, target_logits, target,
    nll, confidence, correct, entropy, squared_error, squared_log_normaliser, target_rank,
    num_rows, num_segments, ROWS: tl.constexpr,
):  # fmt: skip
    """The scores of rows from the numbers of their segments, in float64; those that are None aren't wanted.

    Whether the target is the first of the largest logits is known from `aheads`, or from `firsts`, the first column of
    each segment that has its maximum.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    top = tl.full((ROWS,), -_INFINITY, tl.float32)
    first = tl.zeros((ROWS,), tl.int32)
    place = row
    for _ in range(num_segments):
        m = tl.load(maxima + place, mask=mask, other=0.0)
        if firsts is not None:
            first = tl.where(m > top, tl.load(firsts + place, mask=mask, other=0), first)
        top = maximum(top, m)
        place += num_rows
    invalid = (top != top) | (tl.abs(top) == _INFINITY)
    reference = tl.where(invalid, 0.0, top).to(tl.float64)
    total = tl.zeros((ROWS,), tl.float64)
    moment = tl.zeros((ROWS,), tl.float64)
    square = tl.zeros((ROWS,), tl.float64)
    ahead = tl.zeros((ROWS,), tl.int32)
    place = row
    for _ in range(num_segments):
        gap = tl.maximum(tl.load(maxima + place, mask=mask, other=0.0).to(tl.float64) - reference, -700.0)
        weight = tl.exp(gap)
        of_segment = tl.load(sums + place, mask=mask, other=1.0)
        total += of_segment * weight
        if aheads is not None:
            ahead += tl.load(aheads + place, mask=mask, other=0)
        if entropy is not None:
            moment += (tl.load(moments + place, mask=mask, other=0.0) + of_segment * gap) * weight
        if squared_error is not None:
            square += tl.load(squares + place, mask=mask, other=0.0) * (weight * weight)
        place += num_rows
    wanted = tl.load(target_logits + row, mask=mask, other=0.0).to(tl.float64)
    log_sum = tl.log(total)
    is_first = ahead == 0
    if firsts is not None:
        is_first = first == tl.load(target + row, mask=mask, other=0)
    tl.store(nll + row, tl.where(invalid, _NAN, (reference - wanted) + log_sum).to(tl.float32), mask=mask)
    tl.store(confidence + row, tl.where(invalid, _NAN, 1.0 / total).to(tl.float32), mask=mask)
    tl.store(correct + row, is_first & (invalid == 0) & (wanted == wanted), mask=mask)
    if entropy is not None:
        value = tl.maximum(log_sum - moment / total, 0.0)
        tl.store(entropy + row, tl.where(invalid, _NAN, value).to(tl.float32), mask=mask)
    if squared_error is not None:
        rest = (total - tl.exp(wanted - reference)) / total
        value = rest * rest + square / (total * total)
        tl.store(squared_error + row, tl.where(invalid, _NAN, value).to(tl.float32), mask=mask)
    if squared_log_normaliser is not None:
        log_normaliser = tl.where(invalid, top.to(tl.float64), reference + log_sum)
        tl.store(squared_log_normaliser + row, (log_normaliser * log_normaliser).to(tl.float32), mask=mask)
    if target_rank is not None:
        tl.store(target_rank + row, 1 + ahead.to(tl.int64), mask=mask)


def score_rows(
    logits: Tensor,
    target: Tensor,
    wanted: Collection[str] = (),
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> dict[str, Tensor]:
    """nll, confidence, correct and the wanted `EXTRA_SCORES` of rows ``(N, V)`` of float32, bfloat16 or float16.

    Bias ``(V,)``, scale and softcap are applied to the logits as they are read.
    """
    num_rows, vocab_size = logits.shape
    lanes, depth = SHAPES[logits.element_size()]
    segments = triton.cdiv(vocab_size, lanes * depth * TILES)
    parts = partial_results(num_rows, segments, logits.device, wanted)
    score_segments[(num_rows, segments)](
        logits, target, bias, parts["maxima"], parts["sums"], parts["aheads"], parts["moments"], parts["squares"],
        parts["target_logits"], num_rows, vocab_size, logits.stride(0), logits.stride(1), scale, softcap,
        RANK="target_rank" in wanted, LANES=lanes, LANE_LEVELS=lanes.bit_length() - 1, LEVELS=depth.bit_length() - 1,
        TILES=TILES, num_warps=WARPS, **NUMERICS,
    )  # fmt: skip
    return join(parts, target, wanted)


def partial_results(
    num_rows: int, segments: int, device: torch.device, wanted: Collection[str]
) -> dict[str, Tensor | None]:
    """Memory for the numbers of segments."""

    def numbers(dtype: torch.dtype) -> Tensor:
        return torch.empty(segments, num_rows, dtype=dtype, device=device)

    return {
        "maxima": numbers(torch.float32),
        "sums": numbers(torch.float64),
        "aheads": numbers(torch.int32),
        "firsts": None,
        "moments": numbers(torch.float64) if "entropy" in wanted else None,
        "squares": numbers(torch.float64) if "squared_error" in wanted else None,
        "target_logits": torch.empty(num_rows, dtype=torch.float32, device=device),
    }


def join(parts: dict[str, Tensor | None], target: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """The scores of rows from the numbers of their segments."""
    segments, num_rows = parts["maxima"].shape
    dtypes = {"nll": torch.float32, "confidence": torch.float32, "correct": torch.bool}
    dtypes |= {name: torch.int64 if name == "target_rank" else torch.float32 for name in wanted}
    scores = {name: torch.empty(num_rows, dtype=dtype, device=target.device) for name, dtype in dtypes.items()}
    join_segments[(triton.cdiv(num_rows, _JOINED_ROWS),)](
        parts["maxima"], parts["sums"], parts["aheads"], parts["firsts"], parts["moments"], parts["squares"],
        parts["target_logits"], target, scores["nll"], scores["confidence"], scores["correct"],
        *map(scores.get, EXTRA_SCORES), num_rows, segments, ROWS=_JOINED_ROWS, num_warps=_JOINED_ROWS // 32, **NUMERICS,
    )  # fmt: skip
    return scores
