"""The only place that touches logits: one pass over them, in chunks, in float32 or wider, with no host sync.

nll = logsumexp(logits) − logits[target]: log space to the last line, no softmax-then-log and no epsilon, so a logit
gap of 1e4 is an nll of 1e4. Every row is scored by itself: its bits don't depend on the batch it came in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.binary import Binary, two_classes
from xent_metrics.scoring.linear import BLOCK_ROWS, score_by_vocabulary
from xent_metrics.scoring.rows import RowScorer, ScoringPlan
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["as_tensor", "bytes_of", "check_logits", "check_target", "score_hidden_states", "score_tokens"]

_CPU_CHUNK = 2**19  # logits a chunk: what is computed of them stays in the processor's cache
_DEVICE_CHUNK = 2**22  # 16 MiB of float32: few kernel launches, little memory
_MATMUL_CHUNK = 6 * 2**20  # logits a block of hidden states: large enough for the matmul to run at its speed
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
    binary: Binary | None = None,
    extra_scores: Mapping[str, ExtraScore] | None = None,
) -> TokenScores:
    """Score `target` under `logits`: nll = −ln softmax(logits)[target], in nats per token.

    Args:
        logits: ``(…, V)``, usually (B, T, V) or (N, V); any float dtype and strides. Nothing is shifted: ``logits[t]``
            scores ``target[t]``.
        target: ``(…)`` of any integer dtype, or ``(…, V)`` floats: a distribution a row (soft targets).
        ignore_index: the target that doesn't count.
        weight: ``(…)``, the weight of each row in every sum; one below 0, or nan, makes a row that counts invalid.
        token_bytes: ``(V,)`` from `xent_metrics.token_bytes`, to give `num_bytes`.
        label_smoothing, class_weight: give `loss` and `loss_weight` as `torch.nn.functional.cross_entropy` defines them;
            nll and all else stay as they are.
        binary: "logits" or "probabilities": `logits` ``(…)`` has one a row, that of the class 1, and targets are 0 or 1.
        extra_scores: extra scores of each row, by name, taken in the same pass.

    `logits` may be a torch DTensor: sharded over the vocabulary it is scored where it lies, see `xent_metrics.scoring.sharded`.

    Returns:
        `TokenScores` with the shape of the targets. Targets out of range and rows that are not distributions have nll nan
        and `invalid` True; a metric raises `InvalidTargetError` for them in `compute`.

    Raises:
        InvalidInputError: shapes or dtypes that can't be scored.

    >>> logits = torch.tensor([[0.0, 1e4], [2.0, 2.0]])
    >>> score_tokens(logits, torch.tensor([0, 1])).nll.tolist()
    [10000.0, 0.6931471824645996]
    """
    if binary is not None:
        logits, target = two_classes(as_tensor(logits), as_tensor(target), binary)
    if _is_dtensor(logits, target, weight):
        from xent_metrics.scoring import sharded

        return sharded.score_tokens(
            logits,
            target,
            ignore_index=ignore_index,
            weight=weight,
            token_bytes=token_bytes,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            extra_scores=extra_scores,
        )
    logits = check_logits(as_tensor(logits))
    plan = _plan(
        logits.shape,
        logits.device,
        target,
        ignore_index=ignore_index,
        weight=weight,
        token_bytes=token_bytes,
        label_smoothing=label_smoothing,
        class_weight=class_weight,
        extra_scores=extra_scores,
    )
    rows = RowScorer(plan)
    for block in _split(logits, max(1, logits.numel())):
        rows.add(block)
    return rows.scores()


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
    extra_scores: Mapping[str, ExtraScore] | None = None,
) -> TokenScores:
    """Score `target` under ``logits = hidden_states @ lm_head_weight.T`` without ever holding ``(N, V)`` of them.

    With `bias` added, then `logit_scale` · logits, then `logit_softcap` · tanh(logits / `logit_softcap`), both in float32.

    Args:
        hidden_states: ``(…, H)``.
        lm_head_weight: ``(V, H)``; the product is taken in the wider of the two dtypes' common dtype.
        bias: ``(V,)``.
        logit_scale: finite.
        logit_softcap: positive and finite.
        target and the rest: as for `score_tokens`.

    Raises:
        InvalidInputError: shapes, dtypes or options that can't be scored.

    >>> hidden, head = torch.ones(5, 3), torch.zeros(8, 3)
    >>> score_hidden_states(hidden, head, torch.arange(5)).nll     # uniform over 8: ln 8
    tensor([2.0794, 2.0794, 2.0794, 2.0794, 2.0794])
    """
    _check_adjustment(logit_scale, logit_softcap)
    if _is_dtensor(hidden_states, lm_head_weight, target, weight):
        from xent_metrics.scoring import sharded

        return sharded.score_hidden_states(
            hidden_states,
            lm_head_weight,
            target,
            bias=bias,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
            ignore_index=ignore_index,
            weight=weight,
            token_bytes=token_bytes,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            extra_scores=extra_scores,
        )
    hidden_states, head = as_tensor(hidden_states), as_tensor(lm_head_weight)
    if head.ndim != 2 or len(head) == 0 or hidden_states.ndim < 1 or hidden_states.shape[-1] != head.shape[1]:
        raise InvalidInputError(
            f"expected hidden_states (…, H) and lm_head_weight (V, H) with V ≥ 1; "
            f"got {tuple(hidden_states.shape)} and {tuple(head.shape)}"
        )
    for name, tensor in (("hidden_states", hidden_states), ("lm_head_weight", head)):
        if tensor.dtype not in _LOGITS_DTYPES:
            raise InvalidInputError(
                f"expected {name} of dtype float64, float32, float16 or bfloat16; got {tensor.dtype}. Convert it first"
            )
    dtype = torch.promote_types(hidden_states.dtype, head.dtype)
    head = head.to(dtype)
    offset = None if bias is None else as_tensor(bias).to(dtype)
    if offset is not None and offset.shape != head.shape[:1]:
        raise InvalidInputError(f"expected bias (V,) = ({len(head)},); got {tuple(offset.shape)}")
    plan = _plan(
        torch.Size((*hidden_states.shape[:-1], len(head))),
        hidden_states.device,
        target,
        ignore_index=ignore_index,
        weight=weight,
        token_bytes=token_bytes,
        label_smoothing=label_smoothing,
        class_weight=class_weight,
        extra_scores=extra_scores,
    )
    is_adjusted = logit_scale is not None or logit_softcap is not None
    adjust = partial(_adjust, scale=logit_scale, softcap=logit_softcap) if is_adjusted else None
    rows = RowScorer(plan)
    if _by_vocabulary_blocks(plan, head):
        for hidden in _split(hidden_states, BLOCK_ROWS):
            rows.add_facts(len(hidden), partial(score_by_vocabulary, hidden.to(dtype), head, offset, adjust))
        return rows.scores()
    for hidden in _split(hidden_states, max(1, _MATMUL_CHUNK // max(1, head.shape[0]))):
        logits = F.linear(hidden.to(dtype), head, offset)
        rows.add(logits if adjust is None else adjust(logits))
    return rows.scores()


def _by_vocabulary_blocks(plan: ScoringPlan, head: Tensor) -> bool:
    """Where it is faster than whole rows, by a backend too: on a CPU in full precision (half has matmuls of its own)."""
    wide = head.dtype in (torch.float32, torch.float64)
    return plan.plain and wide and head.device.type == "cpu" and not torch.compiler.is_compiling()


def _is_dtensor(*arrays: Any) -> bool:
    """Told by its mesh, so that torch.distributed.tensor isn't imported for it."""
    return any(isinstance(array, Tensor) and hasattr(array, "device_mesh") for array in arrays)


def _check_adjustment(scale: float | None, softcap: float | None) -> None:
    if scale is not None and not -math.inf < scale < math.inf:
        raise InvalidInputError(f"logit_scale is a finite number; got {scale!r}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise InvalidInputError(f"logit_softcap is positive and finite; got {softcap!r}. None is no softcap")


def _adjust(logits: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale is not None:
        logits = logits * scale
    if softcap is not None:
        logits = (logits / softcap).tanh_().mul_(softcap)
    return logits


def check_logits(logits: Tensor) -> Tensor:
    """The logits, if their shape and dtype can be scored."""
    if logits.dtype not in _LOGITS_DTYPES or logits.ndim < 1 or logits.shape[-1] == 0:
        raise InvalidInputError(
            "expected logits (…, V) of dtype float64, float32, float16 or bfloat16 with V ≥ 1; "
            f"got {tuple(logits.shape)} of {logits.dtype}"
        )
    return logits


def _plan(
    logits_shape: torch.Size,
    device: torch.device,
    target: Any,
    *,
    ignore_index: int,
    weight: Any,
    token_bytes: Any,
    label_smoothing: float,
    class_weight: Any,
    extra_scores: Mapping[str, ExtraScore] | None,
) -> ScoringPlan:
    """Check everything that can be checked without looking at a value."""
    shape, vocab_size = logits_shape[:-1], logits_shape[-1]
    if not isinstance(label_smoothing, int | float) or not 0.0 <= label_smoothing <= 1.0:
        raise InvalidInputError(f"label_smoothing is a number in [0, 1]; got {label_smoothing!r}")
    if not isinstance(ignore_index, int):
        raise InvalidInputError(f"ignore_index is an int; got {ignore_index!r}. Leave it out where every target counts")
    index, soft, counted, invalid = check_target(as_tensor(target).to(device), shape, vocab_size, ignore_index)
    row_weight = _check_weight(weight, shape, device)
    if row_weight is not None:  # a weight of 0 is no row: padding enters no sum, and no count
        flat = row_weight.reshape(-1)
        counted, invalid = counted & (flat != 0), (invalid | (counted & ~(flat >= 0))) & (flat != 0)
    if extra_scores and soft is not None:
        raise InvalidInputError(f"{', '.join(extra_scores)} need integer targets; got distributions")
    num_bytes = None
    if token_bytes is not None and index is not None:
        num_bytes = torch.where(counted & ~invalid, bytes_of(index, token_bytes, vocab_size), 0)
    return ScoringPlan(
        shape=shape,
        vocab_size=vocab_size,
        index=index,
        soft=soft,
        counted=counted,
        invalid=invalid,
        weight=row_weight,
        num_bytes=num_bytes,
        label_smoothing=label_smoothing,
        class_weight=_check_class_weight(class_weight, vocab_size, device),
        extra_scores=extra_scores or {},
        ignore_index=ignore_index,
        chunk_rows=_chunk_rows(counted.numel(), vocab_size, device),
    )


def _chunk_rows(rows: int, vocab_size: int, device: torch.device) -> int:
    if torch.compiler.is_compiling():
        return max(1, rows)  # the compiler fuses; a Python loop would only be unrolled
    if device.type == "cpu":
        return max(8, _CPU_CHUNK // vocab_size)
    return max(1, _DEVICE_CHUNK // vocab_size)


def _check_weight(weight: Any, shape: torch.Size, device: torch.device) -> Tensor | None:
    if weight is None:
        return None
    weights = as_tensor(weight).to(device)
    if weights.shape != shape:
        raise InvalidInputError(
            f"weight has a weight a row, shape {tuple(shape)}; got {tuple(weights.shape)}. "
            "A weight a sequence is `weight[:, None].expand_as(target)`; a weight a class is `class_weight=`"
        )
    return weights


def _check_class_weight(class_weight: Any, vocab_size: int, device: torch.device) -> Tensor | None:
    if class_weight is None:
        return None
    weights = as_tensor(class_weight).to(device)
    if weights.shape != (vocab_size,):
        raise InvalidInputError(
            f"class_weight has a weight a class, shape ({vocab_size},); got {tuple(weights.shape)}. "
            "A weight a token is `weight=`"
        )
    return weights


def check_target(
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
        if target.ndim > 1 and target.shape == (*shape[:1], *shape[2:], vocab_size):  # torch's own order
            hint = f". The classes come last: logits.movedim(1, -1) has {tuple(target.shape)} rows of {shape[1]}"
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
        if not (_has_flat_view(rows) or torch.compiler.is_compiling()):
            for part in rows.unbind(0):
                yield from _split(part, size)
            return
        rows = rows.reshape(-1, rows.shape[-1])
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _has_flat_view(rows: Tensor) -> bool:
    """Whether the dimensions before the last are one dimension in memory."""
    dims = [(n, stride) for n, stride in zip(rows.shape[:-1], rows.stride()[:-1], strict=True) if n != 1]
    return all(stride == n * inner for (_, stride), (n, inner) in pairwise(dims))


def bytes_of(target: Tensor, token_bytes: Any, vocab_size: int | None) -> Tensor:
    """The bytes of each target, from a table with an entry for each of the `vocab_size` classes (or more)."""
    token_bytes = as_tensor(token_bytes)
    if token_bytes.is_floating_point() or token_bytes.is_complex() or token_bytes.dtype == torch.bool:
        raise InvalidInputError(f"token_bytes holds whole numbers of bytes; got {token_bytes.dtype}")
    if token_bytes.ndim != 1 or (vocab_size is not None and len(token_bytes) < vocab_size):
        raise InvalidInputError(
            f"token_bytes has an entry a class, shape ({vocab_size},); got {tuple(token_bytes.shape)}. "
            f"token_bytes(tokenizer, vocab_size={vocab_size}) pads to a model's vocabulary"
        )
    table: Tensor = token_bytes.to(target.device)
    return table[target]
