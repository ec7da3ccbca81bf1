"""Which tensors the C functions can take, how they are described to C, and how many threads a piece of work deserves."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from xent_metrics_native import libraries

__all__ = ["Strides", "are_float32", "are_readable", "is_weight_of", "num_threads"]

_NUMBERS_PER_THREAD = 2**14  # less work is done sooner than another thread wakes up


class Strides(ctypes.Structure):
    """`Strides` of layers.c: distances in numbers; the numbers of a row are adjacent."""

    _fields_ = (("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64))


def are_readable(*tensors: Tensor) -> bool:
    """True if the values of all tensors lie in CPU memory as they are."""
    return all(
        tensor.device.type == "cpu" and tensor.layout is torch.strided and not _is_lazy(tensor) for tensor in tensors
    )


def _is_lazy(tensor: Tensor) -> bool:
    """True if the memory doesn't hold the values: lazily negated views, and zeros without memory.

    `_is_zerotensor` was read in torch 2.13. If it moves, drop it: only forward-mode autograd makes such zeros.
    """
    return tensor.is_neg() or tensor._is_zerotensor()


def are_float32(*tensors: Tensor) -> bool:
    """True if `_layers.so` can take all tensors: readable, float32 and not empty."""
    return (
        libraries.layers is not None
        and are_readable(*tensors)
        and all(tensor.dtype == torch.float32 and tensor.numel() for tensor in tensors)
    )


def is_weight_of(states: Tensor, weight: Tensor) -> bool:
    """True if `_layers.so` can compute ``states @ weight.T`` without a copy of the weight."""
    fits = weight.ndim == 2 and states.ndim > 0 and states.shape[-1] == weight.shape[1]
    return fits and are_float32(states, weight) and weight.is_contiguous()


def num_threads(numbers: int, per_thread: int = _NUMBERS_PER_THREAD) -> int:
    """How many threads to use for this many numbers: at most torch's."""
    return min(torch.get_num_threads(), 1 + numbers // per_thread)
