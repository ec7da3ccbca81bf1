"""RMSNorm (Zhang and Sennrich, 2019) in one pass, in float32, by layers.c.

It replaces the forward of modules that compute weight · x / √(mean x² + eps), or (1 + weight) · x / …
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent_metrics_native import libraries
from xent_metrics_native.replacement import ROUNDING, replaced_by, run_in_c
from xent_metrics_native.tensors import are_float32, num_threads

__all__ = ["replaced_forward", "rms_norm"]

_EPSILONS = ("variance_epsilon", "eps", "epsilon")

_rms_norm = libraries.declare(
    libraries.layers, "xent_rms_norm",
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ctypes.c_int32, ctypes.c_int32,
)  # fmt: skip


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """weight · x / √(mean x² + eps) for states ``(..., H)`` and a weight ``(H,)``; None for tensors that it can't take."""
    if not are_float32(states, weight) or weight.ndim != 1 or states.shape[-1:] != weight.shape:
        return None
    states, weight = states.contiguous(), weight.contiguous()
    out = torch.empty_like(states)
    size, threads = len(weight), num_threads(states.numel())
    rows = states.numel() // size
    _rms_norm(states.data_ptr(), weight.data_ptr(), eps, rows, size, out.data_ptr(), libraries.level, threads)
    return out


def replaced_forward(module: Any) -> Callable[..., Tensor] | None:
    """Our forward for a module; None if it isn't an RMSNorm."""
    if "RMSNorm" not in type(module).__name__:
        return None
    weight = dict(module.named_parameters()).get("weight")
    eps = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if weight is None or weight.ndim != 1 or eps is None:
        return None

    def forward(*given: Tensor, offset: int) -> Tensor | None:
        if len(given) != 1:
            return None
        scale = module.weight.detach()
        return run_in_c(rms_norm, given[0], scale + offset if offset else scale, eps)

    tried = (partial(forward, offset=offset) for offset in (0, 1))  # Gemma adds 1 to its weights
    return next((found for part in tried if (found := replaced_by(part, module, len(weight), ROUNDING))), None)
