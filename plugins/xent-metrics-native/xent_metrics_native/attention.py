"""Causal attention whose scores never leave the caches, in float32, by attention.h.

`CausalAttention` uses it for `torch.nn.functional.scaled_dot_product_attention` without a mask but the causal one.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xent_metrics_native import libraries
from xent_metrics_native.replacement import run_in_c
from xent_metrics_native.tensors import Strides, are_float32, num_threads

__all__ = ["CausalAttention", "causal_attention"]

_MIN_LENGTH = 64  # torch's attention is as fast for shorter texts
_MAX_DIM = 256  # MAX_DIM of layers.c
_MAX_TILE_WIDTH = 32  # the largest WIDE of attention.h


class _Attention(ctypes.Structure):
    """`Attention` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads", "length", "dim", "value_dim")),
        *((name, Strides) for name in ("of_query", "of_key", "of_value", "of_out")),
        ("scale", ctypes.c_float),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


_attention = libraries.declare(
    libraries.layers, "xent_attention", ctypes.POINTER(_Attention), ctypes.c_int32, ctypes.c_int32
)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """softmax(scale · q kᵀ + causal mask) v, or None for tensors that it can't take.

    Args:
        query: ``(B, H, S, D)`` with S ≥ 64 and D ≤ 256.
        key: ``(B, K, S, D)``; each of the K heads serves H / K neighbouring heads of the queries.
        value: ``(B, K, S, E)`` with E ≤ 256.
        scale: factor of the scores.

    Returns:
        ``(B, H, S, E)``, a view of ``(B, S, H, E)``, which models want next.
    """
    if not are_float32(query, key, value) or query.ndim != 4 or query.shape[2] < _MIN_LENGTH:
        return None
    adjacent = all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    if not adjacent or max(query.shape[-1], value.shape[-1]) > _MAX_DIM:
        return None
    batch, heads, length, dim = query.shape
    key_heads, value_dim = value.shape[1], value.shape[-1]
    out = torch.empty(batch, length, heads, value_dim, dtype=torch.float32, device="cpu").transpose(1, 2)
    keys, values = (_room_to_pack(batch * key_heads, length, size) for size in (dim, _padded(value_dim)))
    job = _Attention(
        *(tensor.data_ptr() for tensor in (query, key, value, out)),
        batch, heads, key_heads, length, dim, value_dim,
        *(Strides(*tensor.stride()[:3]) for tensor in (query, key, value, out)),
        scale, keys.data_ptr(), values.data_ptr(),
    )  # fmt: skip
    _attention(ctypes.byref(job), libraries.level, num_threads(batch * heads * length * length))
    return out


def _room_to_pack(heads: int, length: int, dim: int) -> Tensor:
    return torch.empty(heads * _padded(length) * dim, dtype=torch.float32, device="cpu")


def _padded(size: int) -> int:
    return -(-size // _MAX_TILE_WIDTH) * _MAX_TILE_WIDTH


class CausalAttention(TorchFunctionMode):
    """Within it `scaled_dot_product_attention` is ours where we can compute it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or replace it."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            result = _scaled_dot_product_attention(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The result of torch's function; None unless it is causal attention of a text to itself, without dropout."""
    if attn_mask is not None or dropout_p or not is_causal or query.ndim != 4 or key.shape[:3] != value.shape[:3]:
        return None
    batch, heads, length, dim = query.shape
    key_heads = key.shape[1]
    grouped = key_heads == heads or (enable_gqa and key_heads and heads % key_heads == 0)
    if not grouped or (key.shape[0], *key.shape[2:]) != (batch, length, dim):
        return None
    return run_in_c(causal_attention, query, key, value, 1 / math.sqrt(dim) if scale is None else scale)
