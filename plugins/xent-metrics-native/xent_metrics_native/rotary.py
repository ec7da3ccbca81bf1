"""Rotary positions (Su et al., 2021) in one pass, in float32, by layers.c.

They replace functions called `apply_rotary_pos_emb`, which Hugging Face defines beside each model's layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from xent_metrics_native import libraries
from xent_metrics_native.replacement import ROUNDING, agree, or_own, random_numbers, run_in_c
from xent_metrics_native.tensors import Strides, are_float32, num_threads

__all__ = ["FUNCTION", "replaced_function", "rotate"]

FUNCTION = "apply_rotary_pos_emb"


class _Rotary(ctypes.Structure):
    """`Rotary` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("states", "cos", "sin", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "dim")),
        *((name, Strides) for name in ("of_states", "of_cos", "of_sin", "of_out")),
    )


_rotary = libraries.declare(libraries.layers, "xent_rotary", ctypes.POINTER(_Rotary), ctypes.c_int32, ctypes.c_int32)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """x · cos + (−x₂, x₁) · sin, where x₁ and x₂ are the halves of a head; None for tensors that it can't take.

    Args:
        states: queries or keys ``(B, H, S, D)``.
        cos: ``(B, S, D)`` or ``(1, S, D)``.
        sin: of the same shape.

    Returns:
        ``(B, H, S, D)``, a view of ``(B, S, H, D)``.
    """
    if not are_float32(states, cos, sin) or states.ndim != 4 or states.shape[-1] % 2 or cos.shape != sin.shape:
        return None
    batch, heads, length, dim = states.shape
    adjacent = all(tensor.stride(-1) == 1 for tensor in (states, cos, sin))
    if not adjacent or cos.shape not in ((batch, length, dim), (1, length, dim)):
        return None
    cos, sin = cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)
    out = torch.empty(batch, length, heads, dim, dtype=torch.float32, device="cpu").transpose(1, 2)
    job = _Rotary(
        *(tensor.data_ptr() for tensor in (states, cos, sin, out)),
        batch, heads, length, dim,
        *(Strides(tensor.stride(0), 0 if tensor.ndim == 3 else tensor.stride(1), tensor.stride(-2))
          for tensor in (states, cos, sin, out)),
    )  # fmt: skip
    _rotary(ctypes.byref(job), libraries.level, num_threads(states.numel()))
    return out


def replaced_function(source: ModuleType | None) -> Callable[..., Any] | None:
    """Our `apply_rotary_pos_emb` for the models of a source file; None if it has none or another one."""
    own = getattr(source, FUNCTION, None)
    if own is None:
        return None
    q, k, cos, sin = random_numbers(4, 2, 3, 5, 8).unbind()
    given = (q, k[:, :1], cos[:, 0], sin[:, 0])
    return or_own(_rotate_both, own) if agree(lambda: own(*given), lambda: _rotate_both(*given), ROUNDING) else None


def _rotate_both(*given: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rotated queries and keys."""
    if len(given) != 4:
        return None
    query, key = (run_in_c(rotate, states, *given[2:]) for states in given[:2])
    return None if query is None or key is None else (query, key)
