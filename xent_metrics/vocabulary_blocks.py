"""Hidden states to scores over blocks of the vocabulary, so that no row of logits is ever whole.

A matmul of few rows with a large `lm_head` waits for its weights. Here many rows meet a block of the vocabulary while
that lies in the cache, and of each block only three numbers a row stay: its maximum m, where that is, and
s = Σ exp(logit − m). With M the largest m, S = ln Σ s · exp(m − M) joins them:

    nll = (M − logit of the target) + S        confidence = exp(−S)

relative to the maximum to the last line, so that a large logit costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .row_scores import block_maxima, first_argmax

__all__ = ["BLOCK_ROWS", "score_blocks"]

BLOCK_ROWS = 2048
_BLOCK = 2**21  # logits a block: few enough for the cache, enough for threads to be worth waking


def score_blocks(
    hidden: Tensor, head: Tensor, bias: Tensor | None, adjust: Callable[[Tensor], Tensor], index: Tensor
) -> dict[str, Tensor]:
    """nll, confidence and correct of rows ``(R, H)`` under ``adjust(hidden @ head.T + bias)``, targets in [0, V).

    >>> facts = score_blocks(torch.ones(2, 3), torch.zeros(8, 3), None, lambda logits: logits, torch.tensor([0, 5]))
    >>> facts["nll"], facts["correct"]
    (tensor([2.0794, 2.0794]), tensor([ True, False]))
    """
    width = max(512, _BLOCK // max(1, len(hidden)))
    maxima, places, sums, wanted = [], [], [], torch.zeros_like(index, dtype=_wide(hidden.dtype))
    for start in range(0, len(head), width):
        offset = None if bias is None else bias[start : start + width]
        logits = adjust(F.linear(hidden, head[start : start + width], offset)).to(wanted.dtype)
        of_parts = block_maxima(logits)
        maximum = of_parts.amax(-1, keepdim=True)
        places.append(first_argmax(logits, of_parts) + start)
        inside = (index >= start) & (index < start + logits.shape[-1])
        column = (index - start).clamp_(0, logits.shape[-1] - 1)
        wanted = torch.where(inside, logits.gather(-1, column[:, None]).squeeze(-1), wanted)
        # A block of −inf adds nothing; −inf − (−inf) would be nan.
        shifted = logits.sub_(torch.where(maximum == -torch.inf, 0.0, maximum))
        sums.append(shifted.exp_().sum(-1))
        maxima.append(maximum.squeeze(-1))
    return _join(torch.stack(maxima, -1), torch.stack(places, -1), torch.stack(sums, -1), wanted, index)


def _join(maxima: Tensor, places: Tensor, sums: Tensor, wanted: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The facts of whole rows from those of their blocks ``(R, blocks)``; of equal maxima the first counts."""
    block = maxima.argmax(-1, keepdim=True)
    largest = maxima.gather(-1, block)
    rest = (sums * (maxima - largest).exp()).sum(-1).log()
    correct = places.gather(-1, block).squeeze(-1) == index
    return {"nll": (largest.squeeze(-1) - wanted) + rest, "confidence": rest.neg().exp_(), "correct": correct}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
