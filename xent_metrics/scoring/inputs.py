"""Input checks, the scoring options, and the plan made of both.

Everything that can be checked without reading values from a device is checked here, before anything is computed. Checks
that depend on values, such as whether a target is in range, give masks (`counted`, `invalid`) instead of errors, so that
nothing waits for the device.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.devices import chunk_rows, widest_float
from xent_metrics.scoring.scores import ExtraScore, check_extra_score_names

__all__ = [
    "LOGITS_DTYPES",
    "ScoreOptions",
    "ScoringPlan",
    "Targets",
    "as_tensor",
    "bytes_of",
    "check_logits",
    "check_target",
    "make_plan",
    "on_device",
]

LOGITS_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class ScoreOptions:
    """The options that `score_tokens` and `score_hidden_states` share; see `score_tokens` for their meaning."""

    ignore_index: int = -100
    weight: Any = None
    token_bytes: Any = None
    label_smoothing: float = 0.0
    class_weight: Any = None
    extra_scores: Mapping[str, ExtraScore] | None = None

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        if not isinstance(smoothing, int | float) or not 0.0 <= smoothing <= 1.0:
            raise InvalidInputError(f"label_smoothing is a number in [0, 1]; got {smoothing!r}")
        if not isinstance(self.ignore_index, int):
            raise InvalidInputError(
                f"ignore_index is an int; got {self.ignore_index!r}. Leave it out if every target counts"
            )
        check_extra_score_names(self.extra_scores or ())


class Targets(NamedTuple):
    """The targets of N rows: class ids or distributions, with the rows that count and those that are invalid."""

    ids: Tensor | None  # (N,) in [0, V), 0 if ignored or invalid; None for distributions
    soft: Tensor | None  # (N, V); None for class ids
    counted: Tensor  # (N,)
    invalid: Tensor  # (N,)


@dataclass(frozen=True)
class ScoringPlan:
    """Checked inputs of N rows, the options, and how many rows to score at a time."""

    shape: torch.Size  # of the targets
    vocab_size: int
    index: Tensor | None  # (N,) in [0, V); None for distributions
    soft: Tensor | None  # (N, V); None for class ids
    counted: Tensor  # (N,)
    invalid: Tensor  # (N,)
    label_smoothing: float
    class_weight: Tensor | None  # (V,)
    weight: Tensor | None  # of shape `shape`
    num_bytes: Tensor | None  # (N,)
    extra_scores: Mapping[str, ExtraScore]
    ignore_index: int
    chunk_rows: int

    @property
    def has_loss(self) -> bool:
        """True if the loss with label smoothing or class weights is asked for."""
        return bool(self.label_smoothing) or self.class_weight is not None

    @property
    def plain(self) -> bool:
        """True if only nll, confidence and correct of class ids are asked for."""
        return self.soft is None and not self.has_loss and not self.extra_scores


def make_plan(logits_shape: torch.Size, device: torch.device, target: Any, options: ScoreOptions) -> ScoringPlan:
    """Check targets and options against logits of this shape, ``(…, V)``, without reading a value."""
    shape, vocab_size = logits_shape[:-1], logits_shape[-1]
    targets = check_target(on_device(target, device, "targets"), shape, vocab_size, options.ignore_index)
    weight = _check_weight(options.weight, shape, device)
    if weight is not None:
        targets = _apply_weight(targets, weight)
    num_bytes = _num_bytes(targets, options.token_bytes, vocab_size)
    if num_bytes is not None:
        targets = targets._replace(invalid=targets.invalid | (num_bytes < 0))
    if options.extra_scores and targets.soft is not None:
        raise InvalidInputError(f"{', '.join(options.extra_scores)} need integer targets; got distributions")
    return ScoringPlan(
        shape=shape,
        vocab_size=vocab_size,
        index=targets.ids,
        soft=targets.soft,
        counted=targets.counted,
        invalid=targets.invalid,
        weight=weight,
        num_bytes=num_bytes,
        label_smoothing=options.label_smoothing,
        class_weight=_check_class_weight(options.class_weight, vocab_size, device),
        extra_scores=options.extra_scores or {},
        ignore_index=options.ignore_index,
        chunk_rows=chunk_rows(vocab_size, device),
    )


def as_tensor(array: Any) -> Tensor:
    """A detached tensor that shares the array's memory.

    Args:
        array: a tensor, a NumPy array, anything with ``__dlpack__`` (JAX, TensorFlow, CuPy), or nested lists of numbers.

    Raises:
        InvalidInputError: torch can't make a tensor of it; or it has elements that are masked, or not in rows and columns.
    """
    if isinstance(array, Tensor):
        return _strided(array)
    if np.ma.is_masked(array):
        raise InvalidInputError(
            "got a NumPy array with masked elements, and its mask is not read. Mask targets with ignore_index, "
            "`target.filled(-100)`, and rows with `weight`"
        )
    try:
        if isinstance(array, np.ndarray):
            return _from_numpy(array)
        return torch.utils.dlpack.from_dlpack(array) if hasattr(array, "__dlpack__") else torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"expected a tensor, a NumPy array or an array with __dlpack__; got {type(array).__name__}: {error}"
        ) from error


def _strided(tensor: Tensor) -> Tensor:
    """The tensor without its gradients, and without a sign or a conjugation that is yet to be applied."""
    if tensor.layout != torch.strided or tensor.is_nested:
        if tensor.is_nested:
            raise InvalidInputError(
                "expected a dense tensor; got a nested one. `.to_padded_tensor(padding)` makes it dense; pad targets with "
                "ignore_index"
            )
        layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
        raise InvalidInputError(f"expected a dense tensor; got a {layout} one. `.to_dense()` makes it dense")
    return tensor.detach().resolve_neg().resolve_conj()


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no negative strides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": nothing here writes
        return torch.as_tensor(array, device="cpu")


def on_device(array: Any, device: torch.device, name: str) -> Tensor:
    """A tensor of the array on `device`; warns once per name if a copy from the CPU makes every call wait.

    Args:
        array: as for `as_tensor`.
        device: the logits' device.
        name: what the array is called in the warning.
    """
    tensor = as_tensor(array)
    if tensor.ndim and tensor.device.type == "cpu" and device.type not in ("cpu", "meta"):
        _warn_of_copies(name, device.type)
    if tensor.dtype == torch.float64 and tensor.device != device:  # NumPy's own; the device may have none
        return tensor.to(widest_float(device)).to(device)
    return tensor.to(device)


@functools.cache
def _warn_of_copies(name: str, kind: str) -> None:
    warnings.warn(
        f"got {name} on the CPU for logits on {kind}: every call copies this, and waits until the device has done all work "
        f"that it was given. Move it to {kind} first: tables once, and batches by the data loader's pinned memory and "
        "`.to(device, non_blocking=True)`",
        stacklevel=2,
    )


def check_logits(logits: Tensor) -> Tensor:
    """Return the logits if their shape and dtype can be scored.

    Raises:
        InvalidInputError: they are not floats ``(…, V)`` with V ≥ 1.
    """
    if logits.dtype not in LOGITS_DTYPES or logits.ndim < 1 or logits.shape[-1] == 0:
        raise InvalidInputError(
            "expected logits (…, V) of dtype float64, float32, float16 or bfloat16 with V ≥ 1; "
            f"got {tuple(logits.shape)} of {logits.dtype}"
        )
    return logits


def check_target(target: Tensor, shape: torch.Size, vocab_size: int, ignore_index: int) -> Targets:
    """Class ids of the given shape ``(…)`` or distributions ``(…, V)``, flattened.

    Raises:
        InvalidInputError: the shape or the dtype doesn't fit.
    """
    if target.is_floating_point():
        return _check_distributions(target, shape, vocab_size)
    if target.dtype == torch.bool or target.is_complex():
        raise InvalidInputError(f"expected integer targets or float distributions; got {target.dtype}")
    if target.shape != shape:
        raise InvalidInputError(
            f"expected one target per row of logits, shape {tuple(shape)}; got {tuple(target.shape)}"
            + _shape_hint(target.shape, shape, vocab_size)
        )
    ids = target.reshape(-1).long()
    counted = ids != ignore_index
    in_range = (ids >= 0) & (ids < vocab_size)
    return Targets(torch.where(counted & in_range, ids, 0), None, counted, counted & ~in_range)


def _check_distributions(target: Tensor, shape: torch.Size, vocab_size: int) -> Targets:
    if target.shape != (*shape, vocab_size):
        raise InvalidInputError(
            f"float targets are distributions, one per row, of shape {(*shape, vocab_size)}; got {tuple(target.shape)}. "
            "Class ids need an integer dtype"
        )
    soft = target.reshape(-1, vocab_size)
    total = soft.sum(-1, dtype=torch.promote_types(soft.dtype, torch.float32))
    tolerance = 1e-2 if target.dtype in (torch.float16, torch.bfloat16) else 1e-4
    valid = (soft.amin(-1) >= 0) & ((total - 1).abs() <= tolerance)
    return Targets(None, soft, torch.ones_like(valid), ~valid)


def _shape_hint(found: torch.Size, shape: torch.Size, vocab_size: int) -> str:
    """The likely mistake: classes in dimension 1, as torch's own losses take them, or targets that aren't shifted."""
    if len(found) > 1 and found == (*shape[:1], *shape[2:], vocab_size):
        return f". The classes come last: logits.movedim(1, -1) has {tuple(found)} rows of {shape[1]}"
    return ". Nothing is shifted here: drop the last logit and the first id" if len(found) == len(shape) else ""


def _check_weight(weight: Any, shape: torch.Size, device: torch.device) -> Tensor | None:
    if weight is None:
        return None
    weights = on_device(weight, device, "weight")
    if weights.shape != shape:
        raise InvalidInputError(
            f"expected one weight per row, shape {tuple(shape)}; got {tuple(weights.shape)}. "
            "For one per sequence, pass `weight[:, None].expand_as(target)`; for one per class, `class_weight=`"
        )
    return weights


def _apply_weight(targets: Targets, weight: Tensor) -> Targets:
    """Rows of weight 0 don't count, so padding enters neither sums nor counts; a negative weight or nan is invalid."""
    flat, counted = weight.reshape(-1), targets.counted
    invalid = (targets.invalid | (counted & ~(flat >= 0))) & (flat != 0)
    return targets._replace(counted=counted & (flat != 0), invalid=invalid)


def _check_class_weight(class_weight: Any, vocab_size: int, device: torch.device) -> Tensor | None:
    if class_weight is None:
        return None
    weights = on_device(class_weight, device, "class_weight")
    if weights.shape != (vocab_size,):
        raise InvalidInputError(
            f"expected one class_weight per class, shape ({vocab_size},); got {tuple(weights.shape)}. "
            "For one per token, pass `weight=`"
        )
    return weights


def _num_bytes(targets: Targets, token_bytes: Any, vocab_size: int) -> Tensor | None:
    if token_bytes is None or targets.ids is None:
        return None
    scored = targets.counted & ~targets.invalid
    return torch.where(scored, bytes_of(targets.ids, token_bytes, vocab_size), 0)


def bytes_of(target: Tensor, token_bytes: Any, vocab_size: int | None) -> Tensor:
    """The bytes of each target, by a table with one entry for each of the `vocab_size` classes, or more.

    Raises:
        InvalidInputError: the table is too short, or doesn't hold integers.
    """
    token_bytes = as_tensor(token_bytes)
    if token_bytes.is_floating_point() or token_bytes.is_complex() or token_bytes.dtype == torch.bool:
        raise InvalidInputError(f"token_bytes holds whole numbers of bytes; got {token_bytes.dtype}")
    if token_bytes.ndim != 1 or (vocab_size is not None and len(token_bytes) < vocab_size):
        size = vocab_size or "V"
        raise InvalidInputError(
            f"expected one entry of token_bytes per class, shape ({size},); got {tuple(token_bytes.shape)}. "
            f"token_bytes(tokenizer, vocab_size={size}) pads to a model's vocabulary"
        )
    table: Tensor = on_device(token_bytes, target.device, "token_bytes")[target]
    return table
