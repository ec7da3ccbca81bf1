"""Asks the plugins' `score_backend` hooks for the scores of plain rows, and checks what they return.

Without such a plugin torch scores, and this costs a few microseconds a block of rows. With one nothing else changes: the
same fields, and an error that names the plugin where it breaks the hook's contract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public name for it

from .errors import PluginError

__all__ = ["is_plain", "score_by_backend"]


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has memory of its own: it is not being traced, transformed by torch.func, or faked."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(tensor)


def score_by_backend(logits: Tensor, target: Tensor) -> dict[str, Tensor] | None:
    """The first backend's scores of the rows ``(N, V)``, by name, or None where no backend takes them."""
    if not (is_plain(logits) and is_plain(target) and len(logits)):
        return None
    from .plugins import plugins  # which loads the metrics, which score through here

    given = {"logits": logits, "target": target}
    for implementation in reversed(plugins().manager.hook.score_backend.get_hookimpls()):  # pluggy's own order
        name = f"{implementation.plugin_name}: score_backend"
        try:
            result = implementation.function(*(given[argument] for argument in implementation.argnames))
        except Exception as error:
            raise PluginError(
                f"{name} raised {type(error).__name__}: {error}. XENT_METRICS_PLUGINS=a,b loads only the plugins named"
            ) from error
        if result is not None:
            nll, confidence, correct = _checked(result, logits, name)
            return {"nll": nll, "confidence": confidence, "correct": correct}
    return None


def _checked(result: Any, logits: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(result, tuple | list) or [type(column) for column in result] != [Tensor] * 3:
        raise PluginError(f"{name} returned {result!r:.200}; expected three tensors: nll, confidence, correct")
    nll, confidence, correct = result
    wide = nll.dtype if nll.dtype == torch.float64 else torch.float32
    for column, dtype in ((nll, wide), (confidence, wide), (correct, torch.bool)):
        if column.shape != logits.shape[:1] or column.dtype != dtype or column.device != logits.device:
            raise PluginError(
                f"{name} returned {', '.join(map(_described, result))}; expected nll and confidence in float32 or wider and "
                f"correct as bool, each of shape ({len(logits)},) on {logits.device}"
            )
    return nll, confidence, correct


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
