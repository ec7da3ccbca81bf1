"""`score_backend`: nll, confidence and correct in one pass over the logits, by kernel.c.

It takes float32, bfloat16 and float16 with any distance between rows. If the classes of a row aren't adjacent, the logits
are copied, one block of rows at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from xent_metrics import hookimpl
from xent_metrics_native import libraries
from xent_metrics_native.tensors import are_readable, num_threads

__all__ = ["score_backend", "score_rows", "xent_score"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LOGITS_PER_THREAD = 2**16
_LOGITS_PER_COPY = 2**22


class _Job(ctypes.Structure):
    """`Job` of kernel.c."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("target", ctypes.c_void_p),
        ("nll", ctypes.c_void_p),
        ("confidence", ctypes.c_void_p),
        ("correct", ctypes.c_void_p),
    )


def xent_score(library: ctypes.CDLL) -> Callable[..., None]:
    """The C function of a compiled kernel.c."""
    return libraries.declare(library, "xent_score", ctypes.POINTER(_Job), ctypes.c_int32, ctypes.c_int32)


_score = xent_score(libraries.kernel)


@hookimpl
def score_backend(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """nll (float32, nats), confidence (float32) and correct (bool) of rows ``(N, V)`` with targets ``(N,)``."""
    if not _takes(logits, target):
        return None
    if logits.stride(1) == 1 or logits.shape[1] == 1:
        return score_rows(logits, target)
    rows = max(1, _LOGITS_PER_COPY // logits.shape[1])
    blocks = zip(logits.split(rows), target.split(rows), strict=True)
    parts = [score_rows(block.contiguous(), ids) for block, ids in blocks]
    nll, confidence, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    return nll, confidence, correct


def _takes(logits: Tensor, target: Tensor) -> bool:
    """True if these are rows with targets, in memory that the kernel can read."""
    rows = logits.ndim == 2 and logits.shape[1] > 0 and target.shape == logits.shape[:1]
    return are_readable(logits, target) and rows and logits.dtype in _DTYPES and target.dtype == torch.int64


def score_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score rows of adjacent classes. Every instruction set gives the same bits."""
    rows, vocab_size = logits.shape
    target = target.contiguous()
    nll, confidence = torch.empty(2, rows, dtype=torch.float32, device="cpu")
    correct = torch.empty(rows, dtype=torch.bool, device="cpu")
    job = _Job(
        logits=logits.data_ptr(),
        rows=rows,
        vocab_size=vocab_size,
        row_bytes=logits.stride(0) * logits.element_size(),
        dtype=_DTYPES[logits.dtype],
        target=target.data_ptr(),
        nll=nll.data_ptr(),
        confidence=confidence.data_ptr(),
        correct=correct.data_ptr(),
    )
    _score(ctypes.byref(job), libraries.level, num_threads(rows * vocab_size, _LOGITS_PER_THREAD))
    return nll, confidence, correct
