"""C kernels for the CPU behind the hooks of xent-metrics.

    score_backend      nll, confidence and correct of logits in one pass over them: float32, bfloat16 and float16, with any
                       distance between rows; where classes aren't adjacent, a block of rows at a time is copied
    attention_backend  causal attention whose scores never leave the caches, in float32
    rotary_backend     rotary positions in one pass, in float32
    norm_backend       RMSNorm in one pass, in float32
    gated_backend      silu(x Gᵀ) · (x Uᵀ) in one pass over the weights, in float32
    linear_cross_entropy_backend       nll, confidence and correct of x Wᵀ, whose logits never leave the caches, in float32

Installed, they are used by themselves; `XENT_METRICS_PLUGINS=` (empty) leaves them out. The rest is left to torch: other
devices and dtypes, soft targets, the losses of label smoothing and class weights, whatever has no memory of its own.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics import hookimpl

__all__ = [
    "attention_backend", "gated_backend", "linear_cross_entropy_backend", "norm_backend", "rotary_backend", "score_backend"
]  # fmt: skip

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LOGITS_A_THREAD = 2**16  # fewer are scored sooner than a thread wakes up
_LOGITS_A_COPY = 2**22  # where classes aren't adjacent
_LONG = 64  # ids in a row: on shorter ones torch's attention is as fast
_DIM = 256  # of a head, at most: MAX_DIM of layers.c
_NUMBERS_A_THREAD = 2**14
_ROWS = 128  # of states: fewer torch multiplies as fast
_TILE_ROWS = 12  # ROWS of attention.h, at most
_PACKED = 2**18  # weights that lie in a core's cache: 1 MiB
_WIDE = 32  # WIDE of attention.h, at most
_TILES = 16  # of a block of products, at most: MAX_WIDTH of layers.c


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


class _Strides(ctypes.Structure):
    """`Strides` of layers.c."""

    _fields_ = (("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64))


class _Attention(ctypes.Structure):
    """`Attention` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads", "length", "dim", "value_dim")),
        *((name, _Strides) for name in ("of_query", "of_key", "of_value", "of_out")),
        ("scale", ctypes.c_float),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Rotary(ctypes.Structure):
    """`Rotary` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("states", "cos", "sin", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "dim")),
        *((name, _Strides) for name in ("of_states", "of_cos", "of_sin", "of_out")),
    )


class _Products(ctypes.Structure):
    """`Products` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("states", "weight", "up")),
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns", "blocks")),
        ("room", ctypes.c_void_p),
        ("of_thread", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("out", "target", "nll", "confidence", "correct", "top", "rest", "logit", "leads")
        ),
    )


def _load(path: Path) -> ctypes.CDLL:
    """A compiled library, or the reason why this plugin is set aside."""
    if not path.exists():
        raise ImportError(
            "xent-metrics-native was installed without a C compiler, so it has no kernel and torch scores. Install gcc or "
            "clang, then `pip install --force-reinstall --no-deps --no-cache-dir xent-metrics-native`"
        )
    return ctypes.CDLL(str(path))


def _load_kernel(path: Path) -> ctypes.CDLL:
    kernel = _load(path)
    kernel.xent_score.argtypes = [ctypes.POINTER(_Job), ctypes.c_int32, ctypes.c_int32]
    kernel.xent_score.restype = None
    if kernel.xent_level() == 0:
        raise ImportError(
            "this processor has no AVX2 or NEON, without which torch scores faster; uninstall xent-metrics-native"
        )
    return kernel


def _load_layers(path: Path) -> ctypes.CDLL | None:
    """None if it couldn't be compiled: the scores don't need it."""
    if not path.exists():
        return None
    layers = _load(path)
    array, size, few = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    layers.xent_attention.argtypes = [ctypes.POINTER(_Attention), few, few]
    layers.xent_rotary.argtypes = [ctypes.POINTER(_Rotary), few, few]
    layers.xent_rms_norm.argtypes = [array, array, ctypes.c_float, size, size, array, few, few]
    layers.xent_products.argtypes = [ctypes.POINTER(_Products), few, few]
    for function in (layers.xent_attention, layers.xent_rotary, layers.xent_rms_norm, layers.xent_products):
        function.restype = None
    return layers


_folder = Path(__file__).parent
_kernel, _layers = _load_kernel(_folder / "_kernel.so"), _load_layers(_folder / "_layers.so")
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
    rows = logits.ndim == 2 and logits.shape[1] > 0 and target.shape == logits.shape[:1]
    return _readable(logits, target) and rows and logits.dtype in _DTYPES and target.dtype == torch.int64


def _readable(*given: Tensor) -> bool:
    """Whether these tensors have memory that a kernel may read."""
    return all(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        for tensor in given
    )


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


def _floats(*given: Tensor) -> bool:
    """Whether there is a kernel for them: float32 in the CPU's memory, and something."""
    return (
        _layers is not None
        and _readable(*given)
        and all(tensor.dtype == torch.float32 and tensor.numel() for tensor in given)
    )


def _threads(numbers: int) -> int:
    return min(torch.get_num_threads(), 1 + numbers // _NUMBERS_A_THREAD)


@hookimpl
def attention_backend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """softmax(scale · q kᵀ + causal mask) v in float32, for rows of at least 64 and heads of at most 256."""
    return _attention(query, key, value, scale, level=_level) if _attends(query, key, value) else None


def _attends(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if not _floats(query, key, value) or query.ndim != 4 or query.shape[2] < _LONG:
        return False
    adjacent = all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    return adjacent and max(query.shape[-1], value.shape[-1]) <= _DIM


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, *, level: int) -> Tensor:
    batch, heads, length, dim = query.shape
    key_heads, value_dim = value.shape[1], value.shape[-1]
    out = torch.empty(batch, length, heads, value_dim, dtype=torch.float32, device="cpu").transpose(1, 2)
    packed = -(-length // _WIDE) * _WIDE
    keys = torch.empty(batch * key_heads * packed * dim, dtype=torch.float32, device="cpu")
    values = torch.empty(batch * key_heads * packed * -(-value_dim // _WIDE) * _WIDE, dtype=torch.float32, device="cpu")
    job = _Attention(
        *(tensor.data_ptr() for tensor in (query, key, value, out)),
        batch, heads, key_heads, length, dim, value_dim,
        *(_Strides(*tensor.stride()[:3]) for tensor in (query, key, value, out)),
        scale, keys.data_ptr(), values.data_ptr(),
    )  # fmt: skip
    _layers.xent_attention(ctypes.byref(job), level, _threads(batch * heads * length * length))
    return out


@hookimpl
def rotary_backend(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """x · cos + (−x₂, x₁) · sin of the halves x₁ and x₂ of each head, in float32."""
    if not _floats(states, cos, sin) or states.ndim != 4 or states.shape[-1] % 2 or cos.shape != sin.shape:
        return None
    batch, _, length, dim = states.shape
    adjacent = all(tensor.stride(-1) == 1 for tensor in (states, cos, sin))
    if not adjacent or cos.shape not in ((batch, length, dim), (1, length, dim)):
        return None
    return _rotated(states, cos.expand(batch, -1, -1), sin.expand(batch, -1, -1), level=_level)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, *, level: int) -> Tensor:
    batch, heads, length, dim = states.shape
    out = torch.empty(batch, length, heads, dim, dtype=torch.float32, device="cpu").transpose(1, 2)
    job = _Rotary(
        *(tensor.data_ptr() for tensor in (states, cos, sin, out)),
        batch, heads, length, dim,
        *(_Strides(tensor.stride(0), 0 if tensor.ndim == 3 else tensor.stride(1), tensor.stride(-2))
          for tensor in (states, cos, sin, out)),
    )  # fmt: skip
    _layers.xent_rotary(ctypes.byref(job), level, _threads(states.numel()))
    return out


@hookimpl
def norm_backend(states: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """weight · x / √(mean x² + eps) in float32, in one pass over the rows of `states`."""
    if not _floats(states, weight) or weight.ndim != 1 or states.shape[-1:] != weight.shape:
        return None
    return _norm(states.contiguous(), weight.contiguous(), eps, level=_level)


def _norm(states: Tensor, weight: Tensor, eps: float, *, level: int) -> Tensor:
    out = torch.empty_like(states)
    size = len(weight)
    rows = states.numel() // size
    _layers.xent_rms_norm(
        states.data_ptr(), weight.data_ptr(), eps, rows, size, out.data_ptr(), level, _threads(states.numel())
    )
    return out


@hookimpl
def gated_backend(states: Tensor, gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(x Gᵀ) · (x Uᵀ) in float32, for at least 128 rows."""
    if not _multiplies(states, gate) or not _multiplies(states, up) or up.shape != gate.shape:
        return None
    if states.numel() < _ROWS * states.shape[-1]:
        return None
    return _gated(states.contiguous(), gate, up, level=_level)


@hookimpl
def linear_cross_entropy_backend(
    hidden_states: Tensor, weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """nll (float32, nats), confidence (float32) and correct (bool) of x Wᵀ with targets ``(N,)``."""
    rows = hidden_states.ndim == 2 and target.shape == hidden_states.shape[:1] and target.dtype == torch.int64
    if not rows or not _readable(target) or not _multiplies(hidden_states, weight):
        return None
    return _head(hidden_states.contiguous(), weight, target.contiguous(), level=_level)


def _multiplies(states: Tensor, weight: Tensor) -> bool:
    """Whether these are rows, and a matrix for them that needs no copy."""
    fit = weight.ndim == 2 and states.ndim > 0 and states.shape[-1] == weight.shape[1]
    return fit and _floats(states, weight) and weight.is_contiguous()


def _gated(states: Tensor, gate: Tensor, up: Tensor, *, level: int) -> Tensor:
    out = torch.empty(*states.shape[:-1], len(gate), dtype=torch.float32, device="cpu")
    _multiply(states, gate, level, up=up, out=out)
    return out


def _head(states: Tensor, weight: Tensor, target: Tensor, *, level: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(states)
    if rows < _TILE_ROWS:
        states, target = F.pad(states, (0, 0, 0, _TILE_ROWS - rows)), F.pad(target, (0, _TILE_ROWS - rows))
    nll, confidence, logit = torch.empty(3, len(states), dtype=torch.float32, device="cpu")
    correct, leads = torch.empty(2, len(states), dtype=torch.bool, device="cpu")
    scores = {"nll": nll, "confidence": confidence, "correct": correct}
    _multiply(states, weight, level, target=target, logit=logit, leads=leads, **scores)
    return nll[:rows], confidence[:rows], correct[:rows]


def _multiply(states: Tensor, weight: Tensor, level: int, **others: Tensor) -> None:
    """Run the kernel over blocks of columns that fill a core's cache, those of `up` among them."""
    columns, depth = weight.shape
    rows = states.numel() // depth
    tiles = -(-columns * (2 if "up" in others else 1) // _WIDE)
    most = max(1, min(_TILES, _PACKED // (_WIDE * depth)))
    blocks, threads = -(-tiles // most), min(_threads(rows * columns), tiles)
    if "up" in others:  # as many for each thread: gated products are the same however columns are shared out …
        blocks = -(-blocks // threads) * threads
    else:  # … but a row's sum is that of its blocks' sums, which mustn't depend on the threads
        threads = min(threads, blocks)
        others["top"], others["rest"] = torch.empty(2, rows * blocks, dtype=torch.float32, device="cpu")
    of_thread = most * _WIDE * depth
    room = torch.empty(threads * of_thread, dtype=torch.float32, device="cpu")
    addresses = {name: tensor.data_ptr() for name, tensor in others.items()}
    job = _Products(
        states=states.data_ptr(), weight=weight.data_ptr(), rows=rows, depth=depth, columns=columns,
        blocks=blocks, room=room.data_ptr(), of_thread=of_thread, **addresses,
    )  # fmt: skip
    _layers.xent_products(ctypes.byref(job), level, threads)
