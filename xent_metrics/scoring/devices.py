"""What depends on the device: how much is computed at a time, and which dtypes there are.

A CPU is fastest while the intermediate results of a chunk stay in its cache. Any other device wants few, large kernels: each
launch costs microseconds, and a chunk of few rows leaves most of a GPU idle.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

__all__ = [
    "argmax_rows",
    "chunk_rows",
    "chunks",
    "keeps_accumulator",
    "matmul_rows",
    "no_autocast",
    "split",
    "widest_float",
]

_CPU_CHUNK = 2**19  # logits per chunk: its intermediate results stay in the processor's cache
_DEVICE_CHUNK = 3 * 2**24  # 192 MiB of float32: 392 rows of 128,256 logits, several for each processor of a GPU
_CPU_ARGMAX_ROWS = 2048  # rows whose top-1 classes are found together
_DEVICE_ARGMAX_LOGITS = 2**30  # torch's reductions index with 32 bits
_CPU_MATMUL = 6 * 2**20  # logits per matmul: large enough for full speed
_DEVICE_MATMUL_ROWS = 1024  # fewer rows wait for the weights of the `lm_head`
_WORKSPACE_BYTES = 2**28


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """How many rows of V logits to compute ln p of at a time."""
    if device.type == "cpu":
        return max(8, _CPU_CHUNK // vocab_size)
    return max(1, _DEVICE_CHUNK // vocab_size)


def argmax_rows(vocab_size: int, device: torch.device) -> int:
    """Of how many rows of V logits to find the top-1 classes at a time; intermediate results are small."""
    return _CPU_ARGMAX_ROWS if device.type == "cpu" else max(1, _DEVICE_ARGMAX_LOGITS // vocab_size)


def matmul_rows(vocab_size: int, device: torch.device, logit_bytes: int, workspace_bytes: int | None = None) -> int:
    """How many rows of hidden states to multiply with the `lm_head` at a time.

    Args:
        vocab_size: V.
        device: where the hidden states are.
        logit_bytes: how much memory one logit takes.
        workspace_bytes: how much all of them may take, except on a CPU; by default 256 MiB, or what 1,024 rows take if
            that is more.
    """
    if device.type == "cpu":
        return max(1, _CPU_MATMUL // max(1, vocab_size))
    row_bytes = max(1, vocab_size * logit_bytes)
    if workspace_bytes is not None:
        return max(1, workspace_bytes // row_bytes)
    return max(_DEVICE_MATMUL_ROWS, _WORKSPACE_BYTES // row_bytes)


def split(rows: Tensor, size: int | None = None) -> Iterator[Tensor]:
    """``(…, D)`` in pieces ``(≤ size, D)``, in order, of any size by default; nothing is copied, whatever the strides."""
    if rows.ndim == 1:
        rows = rows[None]
    if torch.compiler.is_compiling():
        yield rows.flatten(0, -2)
        return
    if rows.ndim > 2:
        if not _has_flat_view(rows):
            for part in rows.unbind(0):
                yield from split(part, size)
            return
        rows = rows.flatten(0, -2)
    size = size or max(1, len(rows))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _has_flat_view(rows: Tensor) -> bool:
    """True if the dimensions before the last are contiguous with each other in memory."""
    dims = [(n, stride) for n, stride in zip(rows.shape[:-1], rows.stride()[:-1], strict=True) if n != 1]
    return all(stride == n * inner for (_, stride), (n, inner) in pairwise(dims))


def chunks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """At most `size` rows of each tensor at a time, in order.

    Under `torch.compile` all rows come at once: the compiler fuses, and it would unroll the loop for each number of rows.
    """
    if torch.compiler.is_compiling():
        yield tensors
    else:
        yield from zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64: Apple's MPS and some XPUs."""
    if device.type == "mps":
        return torch.float32
    if device.type == "xpu" and torch.xpu.is_available() and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products keep the dtype of their factors, whatever autocast the caller is in."""
    kind = device.type
    # torch.compile of torch 2.10 can't trace is_autocast_available.
    if (kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def keeps_accumulator(kind: str, dtype: torch.dtype) -> bool:
    """True if torch can return a product of half-precision factors in float32, as it was accumulated, on this kind of device."""
    if kind == "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.compiler.is_compiling():  # traces no attempt
        return kind == "cuda"
    return _can_keep_accumulator(kind, dtype)


@functools.cache
def _can_keep_accumulator(kind: str, dtype: torch.dtype) -> bool:
    """It is tried, once per process, because builds and devices differ."""
    square = torch.zeros(16, 16, dtype=dtype, device=kind)
    try:
        return torch.mm(square, square, out_dtype=torch.float32).dtype == torch.float32
    except RuntimeError:  # not on this device
        return False
