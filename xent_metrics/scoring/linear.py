"""Scores of hidden states under an `lm_head`, a block of the vocabulary at a time.

A matmul of few rows with a large `lm_head` waits for its weights. Here many rows are multiplied with each block of the
vocabulary while that block is in the cache, and two numbers per row are kept of it: the maximum m and
s = Σ exp(logit − m). With M the largest m, S = ln Σ s · exp(m − M) joins the blocks:

    nll = (M − logit of the target) + S        confidence = exp(−S)

Everything stays relative to the maximum, so a large logit costs no digits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.backends import is_plain, is_traced
from xent_metrics.scoring.devices import keeps_accumulator, matmul_rows, split
from xent_metrics.scoring.inputs import LOGITS_DTYPES, ScoringPlan, as_tensor
from xent_metrics.scoring.rows import block_maxima, first_argmax

__all__ = ["BLOCK_ROWS", "LMHead", "Workspace", "make_head", "prefers_blocks", "score_by_vocabulary"]

BLOCK_ROWS = 2048  # rows that are multiplied with a block of the vocabulary
_MIN_ROWS = 16  # rows at a time that are never halved
_BLOCK = 2**21  # logits per block: few enough for the cache, enough for several threads


@dataclass(frozen=True, eq=False)
class LMHead:
    """The layer that makes logits of hidden states: softcap · tanh(scale · (hidden @ weight.T + bias) / softcap).

    The product is of factors in the weight's dtype and comes in `logits_dtype`; scale and softcap are in float32 or wider.
    What is None is left out.
    """

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise InvalidInputError(f"expected bias (V,) = ({self.vocab_size},); got {tuple(self.bias.shape)}")
        if self.scale is not None and not -math.inf < self.scale < math.inf:
            raise InvalidInputError(f"logit_scale is a finite number; got {self.scale!r}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise InvalidInputError(
                f"logit_softcap is positive and finite; got {self.softcap!r}. Pass None for no softcap"
            )

    @property
    def vocab_size(self) -> int:
        """V, the number of classes."""
        return self.weight.shape[0]

    @property
    def plain(self) -> bool:
        """True if the logits are the product alone, without bias, scale and softcap."""
        return self.bias is None and self.scale is None and self.softcap is None

    def classes(self, part: slice) -> LMHead:
        """The layer of a part of the classes."""
        return replace(self, weight=self.weight[part], bias=None if self.bias is None else self.bias[part])

    @property
    def logits_dtype(self) -> torch.dtype:
        """float32 if the device can return a half-precision product as it was accumulated, else the weight's dtype."""
        weight = self.weight
        return torch.float32 if keeps_accumulator(weight.device.type, weight.dtype) else weight.dtype

    @property
    def logit_bytes(self) -> int:
        """How much memory `logits` needs for each logit."""
        product = self.logits_dtype
        copied = product != _wide(product) and (self.scale is not None or self.softcap is not None)
        return product.itemsize + (_wide(product).itemsize if copied else 0)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """The logits ``(R, V)`` of hidden states ``(R, H)``, whose product is written to `out` if that is given."""
        logits = self._product(hidden.to(self.weight.dtype), out)
        if self.scale is not None or self.softcap is not None:
            logits = logits.to(_wide(logits.dtype))
        if self.scale is not None:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _product(self, hidden: Tensor, out: Tensor | None) -> Tensor:
        weight, bias, dtype = self.weight, self.bias, self.logits_dtype
        if dtype != hidden.dtype:
            logits = torch.mm(hidden, weight.T, out_dtype=dtype, out=out)
        elif out is None or (bias is not None and dtype != _wide(dtype)):  # rounds once, where add_ would round again
            return F.linear(hidden, weight, bias)
        else:
            logits = torch.mm(hidden, weight.T, out=out)
        return logits if bias is None else logits.add_(bias)


class Workspace:
    """The logits of hidden states, some rows at a time, in memory that the next rows use again.

    If a device runs out of memory, there are half as many rows at a time from there on, down to 16, and a warning says so.
    On a CPU, and for traced tensors, each product is a new tensor.

    Args:
        head: the layer.
        workspace_bytes: how much memory the logits may take, see `devices.matmul_rows`.
        reuse: False if logits may be kept, as extra scores do that are views of them.

    >>> workspace = Workspace(LMHead(torch.eye(3)))
    >>> workspace.for_each(torch.tensor([[1.0, 2.0, 3.0]]), print)
    tensor([[1., 2., 3.]])
    """

    def __init__(self, head: LMHead, workspace_bytes: int | None = None, *, reuse: bool = True) -> None:
        if workspace_bytes is not None and (type(workspace_bytes) is not int or workspace_bytes < 1):
            raise InvalidInputError(
                f"workspace_bytes is a positive number of bytes; got {workspace_bytes!r}. Leave it out for 256 MiB"
            )
        self.head = head
        self.rows = matmul_rows(head.vocab_size, head.weight.device, head.logit_bytes, workspace_bytes)
        self.reuse = reuse and head.weight.device.type != "cpu"
        self._memory: Tensor | None = None
        self._warned = False

    def for_each(self, hidden: Tensor, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the logits ``(rows, V)`` of consecutive rows of `hidden` ``(…, H)``; again if memory runs out in it."""
        for block in split(hidden):
            if torch.compiler.is_compiling():  # a loop would be unrolled
                use(self.head.logits(block))
                continue
            start = 0
            while start < len(block):
                part = block[start : start + self.rows]
                try:
                    use(self._logits(part))
                except torch.OutOfMemoryError:
                    if len(part) <= _MIN_ROWS:
                        raise
                    self._halve(len(part))
                else:
                    start += len(part)

    def _logits(self, hidden: Tensor) -> Tensor:
        if not self.reuse or is_traced(hidden):
            return self.head.logits(hidden)
        if self._memory is None or len(self._memory) < len(hidden):
            self._memory = None  # before there is another one
            self._memory = hidden.new_empty(len(hidden), self.head.vocab_size, dtype=self.head.logits_dtype)
        return self.head.logits(hidden, self._memory[: len(hidden)])

    def _halve(self, rows: int) -> None:
        self.rows, self._memory = max(_MIN_ROWS, rows // 2), None
        if not self._warned:
            warnings.warn(
                f"out of memory for the logits of {rows} rows; going on with {self.rows} rows at a time, or fewer. A smaller "
                "workspace_bytes avoids the attempt",
                stacklevel=2,
            )
        self._warned = True


def make_head(hidden: Tensor, weight: Tensor, bias: Any, scale: float | None, softcap: float | None) -> LMHead:
    """The layer in the common dtype of hidden states ``(…, H)`` and weight ``(V, H)``.

    Raises:
        InvalidInputError: shapes, dtypes or options that don't fit.
    """
    if weight.ndim != 2 or len(weight) == 0 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        raise InvalidInputError(
            f"expected hidden_states (…, H) and lm_head_weight (V, H) with V ≥ 1; "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    for name, tensor in (("hidden_states", hidden), ("lm_head_weight", weight)):
        if tensor.dtype not in LOGITS_DTYPES:
            raise InvalidInputError(
                f"expected {name} of dtype float64, float32, float16 or bfloat16; got {tensor.dtype}. Convert it first"
            )
    bias = None if bias is None else as_tensor(bias)
    for name, tensor in (("lm_head_weight", weight), ("bias", hidden if bias is None else bias)):
        if tensor.device != hidden.device:
            raise InvalidInputError(
                f"expected {name} on the device of hidden_states, {hidden.device}; got {tensor.device}. Move one of them"
            )
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    return LMHead(weight.to(dtype), None if bias is None else bias.to(dtype), scale, softcap)


def prefers_blocks(head: LMHead, plan: ScoringPlan) -> bool:
    """True if blocks of the vocabulary are faster than whole rows: on a CPU, in float32 or float64.

    Half precision has fast matmuls of whole rows.
    """
    weight, wide = head.weight, head.weight.dtype in (torch.float32, torch.float64)
    return plan.plain and wide and weight.device.type == "cpu" and not torch.compiler.is_compiling()


def score_by_vocabulary(hidden: Tensor, head: LMHead, index: Tensor) -> dict[str, Tensor]:
    """nll, confidence and correct of hidden states ``(R, H)`` with targets ``(R,)`` in [0, V).

    >>> scores = score_by_vocabulary(torch.ones(2, 3), LMHead(torch.zeros(8, 3)), torch.tensor([0, 5]))
    >>> scores["nll"], scores["correct"]
    (tensor([2.0794, 2.0794]), tensor([ True, False]))
    """
    width = max(512, _BLOCK // max(1, len(hidden)))
    maxima, sums = [], []
    wanted = torch.zeros_like(index, dtype=_wide(hidden.dtype))  # the target's logit
    block_of_target = index // width
    first = torch.zeros_like(index, dtype=torch.bool)  # whether the target is the first of its block's largest
    for start in range(0, head.vocab_size, width):
        logits = head.classes(slice(start, start + width)).logits(hidden).to(wanted.dtype)
        maxima_of_parts = block_maxima(logits)
        maximum = maxima_of_parts.amax(-1)
        inside = block_of_target == start // width
        column = (index - start).clamp_(0, logits.shape[-1] - 1)
        logit = logits.gather(-1, column[:, None]).squeeze(-1)
        wanted = torch.where(inside, logit, wanted)
        first = first | _is_first(logits, maxima_of_parts, column, inside & (logit == maximum))
        # A block of −inf adds nothing; −inf − (−inf) would be nan.
        shifted = logits.sub_(torch.where(maximum == -torch.inf, 0.0, maximum)[:, None])
        sums.append(shifted.exp_().sum(-1))
        maxima.append(maximum)
    return _join(torch.stack(maxima, -1), torch.stack(sums, -1), wanted, first, block_of_target)


def _is_first(logits: Tensor, maxima: Tensor, column: Tensor, candidates: Tensor) -> Tensor:
    """Whether `column` is the first of the row's largest logits; False for rows that are no candidates."""
    if not is_plain(logits):  # no shape may depend on values
        return candidates & (first_argmax(logits, maxima) == column)
    (rows,) = torch.where(candidates)
    first = torch.zeros_like(candidates)
    first[rows] = first_argmax(logits[rows], maxima[rows]) == column[rows]
    return first


def _join(maxima: Tensor, sums: Tensor, wanted: Tensor, first: Tensor, block_of_target: Tensor) -> dict[str, Tensor]:
    """The scores of whole rows from the numbers kept of each block, ``(R, blocks)``."""
    leading = maxima.argmax(-1, keepdim=True)  # of equal maxima the first
    largest = maxima.gather(-1, leading)
    rest = (sums * (maxima - largest).exp()).sum(-1).log()
    correct = first & (leading.squeeze(-1) == block_of_target)
    return {"nll": (largest.squeeze(-1) - wanted) + rest, "confidence": rest.neg().exp_(), "correct": correct}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
