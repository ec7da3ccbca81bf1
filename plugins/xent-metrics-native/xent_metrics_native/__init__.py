"""A C kernel behind the hook `score_backend`: nll, confidence and correct of CPU logits in one pass over them.

Installed, it is used by itself; `XENT_METRICS_PLUGINS=` (empty) leaves it out. It takes float32, bfloat16 and float16, with
any distance between rows; where classes aren't adjacent, a block of rows at a time is copied. The rest is left to torch:
other devices and dtypes, soft targets, and the losses of label smoothing and class weights.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from xent_metrics import hookimpl

__all__ = ["score_backend"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LOGITS_A_THREAD = 2**16  # fewer are scored sooner than a thread wakes up
_LOGITS_A_COPY = 2**22  # where classes aren't adjacent


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


def _load(path: Path) -> ctypes.CDLL:
    """The compiled kernel, or the reason why this plugin is set aside."""
    if not path.exists():
        raise ImportError(
            "xent-metrics-native was installed without a C compiler, so it has no kernel and torch scores. Install gcc or "
            "clang, then `pip install --force-reinstall --no-deps --no-cache-dir xent-metrics-native`"
        )
    kernel = ctypes.CDLL(str(path))
    kernel.xent_score.argtypes = [ctypes.POINTER(_Job), ctypes.c_int32, ctypes.c_int32]
    kernel.xent_score.restype = None
    if kernel.xent_level() == 0:
        raise ImportError(
            "this processor has no AVX2 or NEON, without which torch scores faster; uninstall xent-metrics-native"
        )
    return kernel


_kernel = _load(Path(__file__).with_name("_kernel.so"))
_level: int = _kernel.xent_level()  # 2: AVX-512, 1: AVX2 or NEON


@hookimpl
def score_backend(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """nll (float32, nats), confidence (float32) and correct (bool) of rows ``(N, V)`` with targets ``(N,)``."""
    if not _takes(logits, target):
        return None
    if logits.stride(1) == 1 or logits.shape[1] == 1:
        return _score(logits, target, level=_level)
    rows = max(1, _LOGITS_A_COPY // logits.shape[1])
    blocks = zip(logits.split(rows), target.split(rows), strict=True)
    parts = [_score(block.contiguous(), ids, level=_level) for block, ids in blocks]
    nll, confidence, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    return nll, confidence, correct


def _takes(logits: Tensor, target: Tensor) -> bool:
    """Whether these are rows, and memory that the kernel may read."""
    readable = all(
        given.device.type == "cpu"
        and given.layout is torch.strided
        and not given.is_neg()
        and not given._is_zerotensor()
        for given in (logits, target)
    )
    rows = logits.ndim == 2 and logits.shape[1] > 0 and target.shape == logits.shape[:1]
    return readable and rows and logits.dtype in _DTYPES and target.dtype == torch.int64


def _score(logits: Tensor, target: Tensor, *, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """By the instructions of one level: 0 the compiler's own, 1 AVX2 or NEON, 2 AVX-512. All give the same bits."""
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
    threads = min(torch.get_num_threads(), 1 + rows * vocab_size // _LOGITS_A_THREAD)
    _kernel.xent_score(ctypes.byref(job), level, threads)
    return nll, confidence, correct
