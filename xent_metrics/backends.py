"""Asks the plugins' backends, and checks what they return: `score_backend` and `head_backend` for the scores of plain rows,
others for the parts of a model's layers.

Without such a plugin torch does it, and this costs a few microseconds a block of rows. With one nothing else changes: the
same fields, and an error that names the plugin where it breaks the hook's contract.
"""

from __future__ import annotations

from typing import Any

import torch
from pluggy import HookImpl
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public name for it

from .errors import PluginError

__all__ = ["has_backend", "is_plain", "part_by_backend", "score_by_backend"]


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has memory of its own: it is not being traced, transformed by torch.func, or faked."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(tensor)


def score_by_backend(hook: str, **given: Tensor) -> dict[str, Tensor] | None:
    """The first backend's scores of the rows given first, by name, or None where no backend takes them."""
    rows = next(iter(given.values()))
    if not (all(map(is_plain, given.values())) and len(rows)):
        return None
    found = _first(hook, **given)
    if found is None:
        return None
    nll, confidence, correct = _checked(*found, rows)
    return {"nll": nll, "confidence": confidence, "correct": correct}


def part_by_backend(hook: str, shape: torch.Size, **given: Any) -> Tensor | None:
    """The first backend's result of `shape` and like the first given tensor, or None where no backend takes them.

    Backends have no gradients, so none is asked where those may be wanted.
    """
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    asked = not torch.is_grad_enabled() and all(is_plain(tensor) for tensor in tensors)
    found = _first(hook, **given) if asked else None
    if found is None:
        return None
    result, name = found
    first = tensors[0]
    if type(result) is not Tensor or (result.shape, result.dtype, result.device) != (shape, first.dtype, first.device):
        got = _described(result) if isinstance(result, Tensor) else f"{result!r:.200}"
        expected = f"{tuple(shape)} of {str(first.dtype).removeprefix('torch.')} on {first.device}"
        raise PluginError(f"{name} returned {got}; expected a tensor {expected}")
    return result


def has_backend(hook: str) -> bool:
    """Whether some plugin implements it."""
    return bool(_implementations(hook))


def _implementations(hook: str) -> list[HookImpl]:
    from .plugins import plugins  # which loads the metrics, which score through here

    return list(reversed(getattr(plugins().manager.hook, hook).get_hookimpls()))  # pluggy's own order


def _first(hook: str, **given: Any) -> tuple[Any, str] | None:
    """The first result that isn't None, and whose it is."""
    for implementation in _implementations(hook):
        name = f"{implementation.plugin_name}: {hook}"
        try:
            result = implementation.function(*(given[argument] for argument in implementation.argnames))
        except Exception as error:
            raise PluginError(
                f"{name} raised {type(error).__name__}: {error}. XENT_METRICS_PLUGINS=a,b loads only the plugins named"
            ) from error
        if result is not None:
            return result, name
    return None


def _checked(result: Any, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(result, tuple | list) or [type(column) for column in result] != [Tensor] * 3:
        raise PluginError(f"{name} returned {result!r:.200}; expected three tensors: nll, confidence, correct")
    nll, confidence, correct = result
    wide = nll.dtype if nll.dtype == torch.float64 else torch.float32
    for column, dtype in ((nll, wide), (confidence, wide), (correct, torch.bool)):
        if column.shape != rows.shape[:1] or column.dtype != dtype or column.device != rows.device:
            raise PluginError(
                f"{name} returned {', '.join(map(_described, result))}; expected nll and confidence in float32 or wider and "
                f"correct as bool, each of shape ({len(rows)},) on {rows.device}"
            )
    return nll, confidence, correct


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
