"""Hidden states to scores over blocks of the vocabulary, so that no row of logits is ever whole.

A matmul of few rows with a large `lm_head` waits for its weights. Here many rows meet a block of the vocabulary while
that lies in the cache, and of each block only two numbers a row stay: its maximum m and s = Σ exp(logit − m). With M the
largest m, S = ln Σ s · exp(m − M) joins them:

    nll = (M − logit of the target) + S        confidence = exp(−S)

relative to the maximum to the last line, so that a large logit costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics.scoring.backends import is_plain, score_by_backend
from xent_metrics.scoring.rows import block_maxima, first_argmax

__all__ = ["BLOCK_ROWS", "score_by_vocabulary"]

BLOCK_ROWS = 2048
_BLOCK = 2**21  # logits a block: few enough for the cache, enough for threads to be worth waking


def score_by_vocabulary(
    hidden: Tensor, head: Tensor, bias: Tensor | None, adjust: Callable[[Tensor], Tensor] | None, index: Tensor
) -> dict[str, Tensor]:
    """nll, confidence and correct of rows ``(R, H)`` under ``adjust(hidden @ head.T + bias)``, targets in [0, V).

    By a plugin's backend, if one takes them, which is only asked for the plain product in the dtype of its factors.

    >>> facts = score_by_vocabulary(torch.ones(2, 3), torch.zeros(8, 3), None, None, torch.tensor([0, 5]))
    >>> facts["nll"], facts["correct"]
    (tensor([2.0794, 2.0794]), tensor([ True, False]))
    """
    if bias is None and adjust is None and not torch.is_autocast_enabled(hidden.device.type):
        found = score_by_backend("linear_cross_entropy_backend", hidden_states=hidden, weight=head, target=index)
        if found is not None:
            return found
    return _score_blocks(hidden, head, bias, adjust, index)


def _score_blocks(
    hidden: Tensor, head: Tensor, bias: Tensor | None, adjust: Callable[[Tensor], Tensor] | None, index: Tensor
) -> dict[str, Tensor]:
    width = max(512, _BLOCK // max(1, len(hidden)))
    maxima, sums = [], []
    wanted = torch.zeros_like(index, dtype=_wide(hidden.dtype))
    block = index // width  # the target's
    first = torch.zeros_like(index, dtype=torch.bool)  # whether it is the first of its block's largest
    for start in range(0, len(head), width):
        offset = None if bias is None else bias[start : start + width]
        logits = F.linear(hidden, head[start : start + width], offset)
        logits = (logits if adjust is None else adjust(logits)).to(wanted.dtype)
        of_parts = block_maxima(logits)
        maximum = of_parts.amax(-1)
        inside = block == start // width
        column = (index - start).clamp_(0, logits.shape[-1] - 1)
        logit = logits.gather(-1, column[:, None]).squeeze(-1)
        wanted = torch.where(inside, logit, wanted)
        leads = inside & (logit == maximum)
        if is_plain(logits):
            (few,) = torch.where(leads)  # only there the first of equal logits is looked for
            first[few] = first_argmax(logits[few], of_parts[few]) == column[few]
        else:
            first = torch.where(leads, first_argmax(logits, of_parts) == column, first)
        # A block of −inf adds nothing; −inf − (−inf) would be nan.
        shifted = logits.sub_(torch.where(maximum == -torch.inf, 0.0, maximum)[:, None])
        sums.append(shifted.exp_().sum(-1))
        maxima.append(maximum)
    return _join(torch.stack(maxima, -1), torch.stack(sums, -1), wanted, first, block)


def _join(maxima: Tensor, sums: Tensor, wanted: Tensor, first: Tensor, block: Tensor) -> dict[str, Tensor]:
    """The facts of whole rows from those of their blocks ``(R, blocks)``; of equal maxima the first counts."""
    leading = maxima.argmax(-1, keepdim=True)
    largest = maxima.gather(-1, leading)
    rest = (sums * (maxima - largest).exp()).sum(-1).log()
    correct = first & (leading.squeeze(-1) == block)
    return {"nll": (largest.squeeze(-1) - wanted) + rest, "confidence": rest.neg().exp_(), "correct": correct}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
