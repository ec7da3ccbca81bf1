"""The only place that touches logits: one pass over them, in chunks, in float32 or wider, with no host sync.

nll = logsumexp(logits) − logits[target]: log space to the last line, no softmax-then-log and no epsilon, so a logit
gap of 1e4 is an nll of 1e4. Every row is scored by itself: its bits don't depend on the batch it came in.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InvalidInputError
from .scores import TokenScores

__all__ = ["as_tensor", "bytes_of", "score_hidden_states", "score_tokens"]

_CPU_CHUNK = 2**19  # logits a chunk: what is computed of them stays in the processor's cache
_DEVICE_CHUNK = 2**22  # 16 MiB of float32: few kernel launches, little memory
_MATMUL_CHUNK = 6 * 2**20  # logits a block of hidden states: large enough for the matmul to run at its speed
_BLOCK = 16  # chunks whose top-1 is found together
_ARGMAX_BLOCK = 512
_LOGITS_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_tensor(array: Any) -> Tensor:
    """A torch tensor that shares the memory of any array: NumPy, or anything with DLPack (JAX, TensorFlow, CuPy)."""
    if isinstance(array, Tensor):
        return array.detach()
    try:
        if isinstance(array, np.ndarray):
            return _from_numpy(array)
        return torch.utils.dlpack.from_dlpack(array) if hasattr(array, "__dlpack__") else torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"expected a tensor, a NumPy array or an array with __dlpack__; got {type(array).__name__}: {error}"
        ) from error


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no negative strides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": nothing here writes
        return torch.as_tensor(array)


@torch.no_grad()
def score_tokens(
    logits: Any,
    target: Any,
    *,
    ignore_index: int = -100,
    weight: Any = None,
    token_bytes: Any = None,
    label_smoothing: float = 0.0,
    class_weight: Any = None,
) -> TokenScores:
    """Score `target` under `logits`: nll = −ln softmax(logits)[target], in nats per token.

    Args:
        logits: ``(…, V)``, usually (B, T, V) or (N, V); any float dtype and strides. Nothing is shifted: ``logits[t]``
            scores ``target[t]``.
        target: ``(…)`` of any integer dtype, or ``(…, V)`` floats: a distribution a row (soft targets).
        ignore_index: the target that doesn't count.
        weight: ``(…)``, the weight of each row in every sum.
        token_bytes: ``(V,)`` from `xent_metrics.token_bytes`, to give `num_bytes`.
        label_smoothing, class_weight: give `loss` and `loss_weight` as `torch.nn.functional.cross_entropy` defines them;
            nll and all else stay as they are.

    Returns:
        `TokenScores` with the shape of the targets. Targets out of range and rows that are not distributions have nll nan
        and `invalid` True; a metric raises `InvalidTargetError` for them in `compute`.

    Raises:
        InvalidInputError: shapes or dtypes that can't be scored.

    >>> logits = torch.tensor([[0.0, 1e4], [2.0, 2.0]])
    >>> score_tokens(logits, torch.tensor([0, 1])).nll.tolist()
    [10000.0, 0.6931471824645996]
    """
    logits = _as_logits(logits)
    vocab_size = logits.shape[-1]
    plan = _plan(logits.shape[:-1], vocab_size, logits.device, target, ignore_index, label_smoothing, class_weight)
    rows = _Rows(plan)
    for block in _split(logits, _BLOCK * plan.chunk_rows):
        rows.add(block)
    return rows.scores(weight, token_bytes)


@torch.no_grad()
def score_hidden_states(
    hidden_states: Any,
    lm_head_weight: Any,
    target: Any,
    *,
    bias: Any = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    ignore_index: int = -100,
    weight: Any = None,
    token_bytes: Any = None,
    label_smoothing: float = 0.0,
    class_weight: Any = None,
) -> TokenScores:
    """Score `target` under ``logits = hidden_states @ lm_head_weight.T`` without ever holding ``(N, V)`` of them.

    With `bias` added, then `logit_scale` · logits, then `logit_softcap` · tanh(logits / `logit_softcap`), both in float32.

    Args:
        hidden_states: ``(…, H)``.
        lm_head_weight: ``(V, H)``; the product is taken in the wider of the two dtypes' common dtype.
        bias: ``(V,)``.
        target and the rest: as for `score_tokens`.

    >>> hidden, head = torch.ones(5, 3), torch.zeros(8, 3)
    >>> score_hidden_states(hidden, head, torch.arange(5)).nll     # uniform over 8: ln 8
    tensor([2.0794, 2.0794, 2.0794, 2.0794, 2.0794])
    """
    hidden_states, head = as_tensor(hidden_states), as_tensor(lm_head_weight)
    if head.ndim != 2 or hidden_states.ndim < 1 or hidden_states.shape[-1] != head.shape[1]:
        raise InvalidInputError(
            f"expected hidden_states (…, H) and lm_head_weight (V, H); "
            f"got {tuple(hidden_states.shape)} and {tuple(head.shape)}"
        )
    dtype = torch.promote_types(hidden_states.dtype, head.dtype)
    head = head.to(dtype)
    offset = None if bias is None else as_tensor(bias).to(dtype)
    if offset is not None and offset.shape != head.shape[:1]:
        raise InvalidInputError(f"expected bias (V,) = ({len(head)},); got {tuple(offset.shape)}")
    plan = _plan(
        hidden_states.shape[:-1],
        head.shape[0],
        hidden_states.device,
        target,
        ignore_index,
        label_smoothing,
        class_weight,
    )
    rows = _Rows(plan)
    for hidden in _split(hidden_states, max(1, _MATMUL_CHUNK // max(1, head.shape[0]))):
        logits = F.linear(hidden.to(dtype), head, offset)
        if logit_scale is not None or logit_softcap is not None:
            logits = _adjust(logits, logit_scale, logit_softcap)
        rows.add(logits)
    return rows.scores(weight, token_bytes)


def _adjust(logits: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale is not None:
        logits = logits * scale
    if softcap is not None:
        logits = (logits / softcap).tanh_().mul_(softcap)
    return logits


def _as_logits(array: Any) -> Tensor:
    logits = as_tensor(array)
    if logits.dtype not in _LOGITS_DTYPES or logits.ndim < 1 or logits.shape[-1] == 0:
        raise InvalidInputError(
            "expected logits (…, V) of dtype float64, float32, float16 or bfloat16 with V ≥ 1; "
            f"got {tuple(logits.shape)} of {logits.dtype}"
        )
    return logits


@dataclass(frozen=True)
class _Plan:
    """What is to be scored, checked before anything is computed. N rows, flattened."""

    shape: torch.Size
    vocab_size: int
    index: Tensor | None  # (N,) in [0, V); None for soft targets
    soft: Tensor | None  # (N, V)
    counted: Tensor  # (N,)
    invalid: Tensor  # (N,)
    label_smoothing: float
    class_weight: Tensor | None  # (V,) float64
    chunk_rows: int


def _plan(
    shape: torch.Size,
    vocab_size: int,
    device: torch.device,
    target: Any,
    ignore_index: int,
    label_smoothing: float,
    class_weight: Any,
) -> _Plan:
    if not 0.0 <= label_smoothing <= 1.0:
        raise InvalidInputError(f"label_smoothing lies in [0, 1]; got {label_smoothing}")
    if not isinstance(ignore_index, int):
        raise InvalidInputError(f"ignore_index is an int; got {ignore_index!r}. Leave it out where every target counts")
    target = as_tensor(target).to(device)
    index, soft, counted, invalid = _check_target(target, shape, vocab_size, ignore_index)
    if class_weight is not None:
        class_weight = as_tensor(class_weight).to(device=device)
        if class_weight.shape != (vocab_size,):
            raise InvalidInputError(
                f"class_weight has a weight a class, shape ({vocab_size},); got {tuple(class_weight.shape)}. "
                "A weight a token is `weight=`"
            )
    if torch.compiler.is_compiling():
        chunk_rows = max(1, counted.numel())  # the compiler fuses; a Python loop would only be unrolled
    elif device.type == "cpu":
        chunk_rows = max(8, _CPU_CHUNK // vocab_size)
    else:
        chunk_rows = max(1, _DEVICE_CHUNK // vocab_size)
    return _Plan(shape, vocab_size, index, soft, counted, invalid, label_smoothing, class_weight, chunk_rows)


def _check_target(
    target: Tensor, shape: torch.Size, vocab_size: int, ignore_index: int
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Index or distribution, which rows count, and which are invalid; no value is looked at on the host."""
    if target.is_floating_point():
        if target.shape != (*shape, vocab_size):
            raise InvalidInputError(
                f"a float target is a distribution a row, shape {(*shape, vocab_size)}; got {tuple(target.shape)}. "
                "Class ids need an integer dtype"
            )
        soft = target.reshape(-1, vocab_size)
        total = soft.sum(-1, dtype=torch.float64)
        tolerance = 1e-2 if target.dtype in (torch.float16, torch.bfloat16) else 1e-4
        valid = (soft.amin(-1) >= 0) & ((total - 1).abs() <= tolerance)
        return None, soft, torch.ones_like(valid), ~valid
    if target.dtype == torch.bool or target.is_complex():
        raise InvalidInputError(f"expected integer targets or float distributions; got {target.dtype}")
    if target.shape != shape:
        hint = ". Nothing is shifted here: drop the last logit and the first id" if target.ndim == len(shape) else ""
        raise InvalidInputError(
            f"expected one target a row of logits, shape {tuple(shape)}; got {tuple(target.shape)}{hint}"
        )
    ids = target.reshape(-1).long()
    counted = ids != ignore_index
    in_range = (ids >= 0) & (ids < vocab_size)
    return torch.where(counted & in_range, ids, 0), None, counted, counted & ~in_range


def _split(rows: Tensor, size: int) -> Iterator[Tensor]:
    """``(…, D)`` in pieces ``(≤ size, D)``, in order, without copying what has no flat view."""
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim > 2:
        try:
            rows = rows.view(-1, rows.shape[-1])
        except RuntimeError:
            for part in rows.unbind(0):
                yield from _split(part, size)
            return
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class _Rows:
    """Collects the scores of consecutive chunks of rows."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.start = 0
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, logits: Tensor) -> None:
        """Score the next rows, ``(rows, V)``, a chunk at a time."""
        plan, rows = self.plan, slice(self.start, self.start + len(logits))
        self.start += len(logits)
        top = _first_argmax(logits)
        score = self._hard if plan.soft is None else self._soft
        targets = plan.index if plan.soft is None else plan.soft
        assert targets is not None
        chunks = zip(*(tensor.split(plan.chunk_rows) for tensor in (logits, targets[rows], top)), strict=True)
        self.parts += [score(*chunk) for chunk in chunks]

    def _hard(self, logits: Tensor, index: Tensor, top: Tensor) -> tuple[Tensor, ...]:
        """(nll, confidence, correct, loss …) of a chunk of rows with one target class each."""
        log_prob = _log_softmax(logits)
        nll, surprise = log_prob.gather(-1, torch.stack([index, top], dim=-1)).neg_().unbind(-1)
        return nll, surprise.neg().exp_(), top == index, *self._loss(log_prob, nll, index)

    def _loss(self, log_prob: Tensor, nll: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """(1 − ε) w_y nll + ε/V Σ_c w_c (−ln p_c), and w_y; nothing where neither option is used."""
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not smoothing and class_weight is None:
            return ()
        ones = torch.ones(self.plan.vocab_size, dtype=torch.float64, device=nll.device)
        weights = (ones if class_weight is None else class_weight).to(nll.dtype)
        loss_weight = weights[index]
        loss = (1 - smoothing) * loss_weight * nll
        if smoothing:
            loss = loss - smoothing / self.plan.vocab_size * (log_prob * weights).sum(-1)
        return loss, loss_weight

    def _soft(self, logits: Tensor, soft: Tensor, top: Tensor) -> tuple[Tensor, ...]:
        """The same for rows whose target is a distribution."""
        log_prob = _log_softmax(logits)
        confidence = log_prob.gather(-1, top[:, None]).squeeze(-1).exp()
        soft = soft.to(log_prob.dtype)
        terms = torch.where(soft > 0, soft * log_prob, 0.0)  # 0 ln 0 = 0
        facts = -terms.sum(-1), confidence, top == soft.argmax(-1)
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not smoothing and class_weight is None:
            return facts
        smooth = (1 - smoothing) * terms
        if smoothing:
            smooth = smooth + smoothing / self.plan.vocab_size * log_prob
        if class_weight is not None:
            smooth = smooth * class_weight.to(log_prob.dtype)
        loss = -smooth.sum(-1)
        return *facts, loss, torch.ones_like(loss)

    def scores(self, weight: Any, token_bytes: Any) -> TokenScores:
        """The scores of all rows in the shape of the targets."""
        plan = self.plan
        if not self.parts:  # an empty batch: the fields are there, without rows
            self.add(torch.zeros(0, plan.vocab_size, device=plan.counted.device))
        nll, confidence, correct, *loss = (torch.cat(column) for column in zip(*self.parts, strict=True))
        nll = torch.where(plan.invalid, torch.nan, torch.where(plan.counted, nll, 0.0))
        valid = plan.counted & ~plan.invalid
        fields = {
            "nll": nll,
            "counted": plan.counted,
            "confidence": torch.where(plan.counted, confidence, 0.0),
            "correct": correct & valid & ~nll.isnan(),  # argmax takes a nan for the largest
            "invalid": plan.invalid,
        }
        if plan.index is not None:
            fields["target"] = plan.index
            if token_bytes is not None:
                fields["num_bytes"] = torch.where(valid, bytes_of(plan.index, token_bytes, plan.vocab_size), 0)
        if loss:
            fields["loss"] = torch.where(plan.invalid, torch.nan, torch.where(plan.counted, loss[0], 0.0))
            fields["loss_weight"] = torch.where(valid, loss[1], 0.0)
        if weight is not None:
            fields["weight"] = _check_weight(weight, plan)
        shaped = {name: value.reshape(plan.shape) for name, value in fields.items()}
        return TokenScores(**shaped, vocab_size=plan.vocab_size)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _check_weight(weight: Any, plan: _Plan) -> Tensor:
    weight = as_tensor(weight).to(plan.counted.device)
    if weight.shape != plan.shape:
        raise InvalidInputError(
            f"weight has a weight a row, shape {tuple(plan.shape)}; got {tuple(weight.shape)}. "
            "A weight a sequence is `weight[:, None].expand_as(target)`; a weight a class is `class_weight=`"
        )
    return weight


def bytes_of(target: Tensor, token_bytes: Any, vocab_size: int | None) -> Tensor:
    """The bytes of each target, from a table with an entry for each of the `vocab_size` classes (or more)."""
    token_bytes = as_tensor(token_bytes)
    if token_bytes.ndim != 1 or (vocab_size is not None and len(token_bytes) < vocab_size):
        raise InvalidInputError(
            f"token_bytes has an entry a class, shape ({vocab_size},); got {tuple(token_bytes.shape)}. "
            f"token_bytes(tokenizer, vocab_size={vocab_size}) pads to a model's vocabulary"
        )
    return token_bytes.to(target.device)[target]


def _first_argmax(rows: Tensor) -> Tensor:
    """`rows.argmax(-1)`, the first of equal maxima; on the CPU by blocks, several times as fast as torch's own."""
    vocab_size = rows.shape[-1]
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or vocab_size < 2 * _ARGMAX_BLOCK:
        return rows.argmax(-1)
    whole = vocab_size // _ARGMAX_BLOCK * _ARGMAX_BLOCK
    maxima = rows[:, :whole].unflatten(-1, (-1, _ARGMAX_BLOCK)).amax(-1)  # (rows, blocks)
    if whole < vocab_size:
        maxima = torch.cat([maxima, rows[:, whole:].amax(-1, keepdim=True)], dim=-1)
    start = maxima.argmax(-1, keepdim=True) * _ARGMAX_BLOCK
    # The last block may be short: repeating its last column leaves the first maximum where it is.
    columns = (start + torch.arange(_ARGMAX_BLOCK, device=rows.device)).clamp_(max=vocab_size - 1)
    inside = rows.gather(-1, columns).argmax(-1, keepdim=True)
    return (start + inside).squeeze(-1)
