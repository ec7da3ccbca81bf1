"""Which tensors the kernels can take, and what happens where Triton is missing, too old or can't compile."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["OLDEST", "attempt", "can_run", "can_score", "can_score_hidden", "can_sum", "warn_without_triton"]

OLDEST = (3, 3)  # the oldest Triton with which the kernels were compiled
_LOGITS = (torch.float32, torch.bfloat16, torch.float16)
_NUMBERS = (*_LOGITS, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_MOST = 2**31 - 2**16  # columns, and values per row, that 32-bit indices can reach
_T = TypeVar("_T")
_failed: set[str] = set()  # hooks whose kernels didn't compile


def can_score(logits: Tensor, target: Tensor) -> bool:
    """True if these are rows of logits with targets, of dtypes that `score_rows` takes."""
    rows = logits.ndim == 2 and target.shape == logits.shape[:1] and len(target) > 0 and target.is_contiguous()
    return rows and 0 < logits.shape[1] < _MOST and logits.dtype in _LOGITS and target.dtype == torch.int64


def can_score_hidden(hidden_states: Tensor, head: Any, target: Tensor) -> bool:
    """True if these are hidden states with a head of their dtype and with targets."""
    weight = head.weight
    fits = weight.ndim == 2 and 0 < len(weight) < _MOST and hidden_states.shape == (len(target), weight.shape[1])
    numbers = hidden_states.dtype == weight.dtype and weight.dtype in _LOGITS and target.dtype == torch.int64
    return fits and numbers and target.ndim == 1 and len(target) > 0 and weight.shape[1] > 0 and target.is_contiguous()


def can_sum(values: Tensor, bins: Tensor | None, num_bins: int) -> bool:
    """True if these are rows of numbers, with or without bins, that the kernel takes."""
    whole = bins is None or (bins.shape == values.shape[1:] and bins.dtype == torch.int64)
    small = values.ndim == 2 and values.numel() > 0 and values.shape[1] < _MOST and len(values) * num_bins < _MOST // 8
    return small and whole and values.dtype in _NUMBERS


def can_run(*tensors: Tensor) -> bool:
    """True if all tensors lie, as they are, in the memory of one device that kernels run on."""
    device = tensors[0].device
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    if not all(
        tensor.device == device and tensor.layout is torch.strided and not tensor.is_neg() for tensor in tensors
    ):
        return False
    if any(tensor._is_zerotensor() for tensor in tensors):  # zeros without memory; read in torch 2.13
        return False
    return _is_ready()


def warn_without_triton() -> None:
    """Warn where no tensor at all could be taken."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn(
            "xent-metrics-triton has no Triton, so torch scores. `pip install triton`, or uninstall xent-metrics-triton",
            stacklevel=3,
        )


@functools.cache
def _is_ready() -> bool:
    """True if Triton can be imported and is new enough; says once why not."""
    if importlib.util.find_spec("triton") is None:
        return False  # said when the plugin was loaded
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        warnings.warn(
            f"xent-metrics-triton needs Triton {'.'.join(map(str, OLDEST))} or newer and found {triton.__version__}, so "
            "torch scores. A newer torch brings a newer Triton",
            stacklevel=4,
        )
        return False
    return True


def attempt(hook: str, tensor: Tensor, compute: Callable[[], _T]) -> _T | None:
    """What `compute` returns, on the device of `tensor`; None, and one warning, if Triton can't compile for it."""
    if hook in _failed:
        return None
    guard = torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()
    try:
        with guard:
            return compute()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _failed.add(hook)
        warnings.warn(
            f"xent-metrics-triton's {hook} is off in this process, and torch computes instead: "
            f"{type(error).__name__}: {error!s:.500}",
            stacklevel=4,
        )
        return None
