"""Scores of hidden states: the logits of a block of rows at a time in one workspace, scored by `score_rows`.

cuBLAS multiplies, in float32 from half precision where torch can keep its accumulators (`torch.mm(out_dtype=…)`). Bias,
scale and softcap are applied as the logits are read. cuBLAS chooses its algorithm by the shape, so every block has
`BLOCK_ROWS` rows, padded with zeros: the bits of a row don't depend on how many there are.

Where the workspace doesn't fit, which is said once, blocks of half as many rows are tried, then `fused.py`, which keeps no
logits. Then the bits of a row also depend on the free memory. The environment variable XENT_METRICS_TRITON_HEAD=fused asks
for it at once.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics_triton import fused
from xent_metrics_triton.rows import score_rows

__all__ = ["BLOCK_ROWS", "score_hidden"]

BLOCK_ROWS = 1024
_FEWEST_ROWS = 128  # below it a product waits for the head


def score_hidden(hidden: Tensor, head: Any, target: Tensor, wanted: Collection[str]) -> dict[str, Tensor] | None:
    """The scores of hidden states ``(N, H)``; None if they don't fit into memory, or `fused` can't give the wanted ones."""
    rows = BLOCK_ROWS if os.environ.get("XENT_METRICS_TRITON_HEAD") != "fused" else 0
    with torch.autocast(hidden.device.type, enabled=False):
        while rows >= _FEWEST_ROWS:
            try:
                return score_by_blocks(hidden, head, target, wanted, rows)
            except torch.OutOfMemoryError:
                rows //= 2
                _warn_of_memory()
        try:
            return fused.score_fused(hidden, head, target, wanted) if fused.can_give(wanted) else None
        except torch.OutOfMemoryError:
            return None  # torch's route goes down to 16 rows


@functools.cache
def _warn_of_memory() -> None:
    warnings.warn(
        f"xent-metrics-triton has no memory for the logits of {BLOCK_ROWS} rows of hidden states, and goes on with fewer rows "
        "at a time, or without logits in memory. Free memory, or XENT_METRICS_TRITON_HEAD=fused, avoids the attempts",
        stacklevel=2,
    )


def score_by_blocks(
    hidden: Tensor, head: Any, target: Tensor, wanted: Collection[str], block_rows: int
) -> dict[str, Tensor]:
    """The scores by blocks of `block_rows` rows, whose logits share one workspace."""
    workspace = torch.empty(block_rows, head.vocab_size, dtype=_product_dtype(head), device=hidden.device)
    parts = []
    for states, index in zip(hidden.split(block_rows), target.split(block_rows), strict=True):
        _multiply(F.pad(states, (0, 0, 0, block_rows - len(states))), head.weight, workspace)
        parts.append(score_rows(workspace[: len(states)], index, wanted, head.bias, head.scale, head.softcap))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _product_dtype(head: Any) -> torch.dtype:
    """The dtype in which the device returns products of this head; float32 for the interpreter."""
    return torch.float32 if head.weight.device.type == "cpu" else head.logits_dtype


def _multiply(states: Tensor, weight: Tensor, out: Tensor) -> None:
    """``states @ weight.T`` into `out`."""
    if out.dtype == states.dtype:
        torch.mm(states, weight.T, out=out)
    elif states.device.type == "cpu":  # the interpreter's; the products of half precision are exact in float32
        torch.mm(states.float(), weight.float().T, out=out)
    else:
        torch.mm(states, weight.T, out_dtype=torch.float32, out=out)
