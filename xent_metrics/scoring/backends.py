"""Asks plugins for a faster pass over plain rows, and checks what they return.

`score_backend` scores rows of logits, `linear_cross_entropy_backend` rows of hidden states. Without such a plugin torch
does the work, and asking costs a few microseconds per block of rows. With one, the fields are the same, and an error
names the plugin that breaks the hook's contract.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from pluggy import HookCaller
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public name for it

from xent_metrics.errors import PluginError
from xent_metrics.hookspecs import hooks

__all__ = ["has_backend", "is_plain", "part_by_backend", "score_by_backend"]


def is_plain(tensor: Tensor) -> bool:
    """True for a tensor with memory of its own: not traced, not transformed by torch.func, not fake."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(tensor)


def has_backend(hook: str) -> bool:
    """True if a loaded plugin implements `hook`."""
    return bool(getattr(hooks(), hook).get_hookimpls())


def score_by_backend(hook: str, **given: Tensor) -> dict[str, Tensor] | None:
    """Scores by name from the first backend that accepts these rows; None if there is none.

    Raises:
        PluginError: a backend raised, or returned something else than the hook's contract says.
    """
    rows = next(iter(given.values()))
    if not (all(map(is_plain, given.values())) and len(rows)):
        return None
    result = _call(hook, given)
    if result is None:
        return None
    problem = _problem(result, rows)
    if problem:
        raise PluginError(f"{_plugin_that_gave(hook, given)}: {hook} returned {problem}")
    return dict(zip(("nll", "confidence", "correct"), result, strict=True))


def part_by_backend(hook: str, shape: torch.Size, **given: Any) -> Tensor | None:
    """The first backend's result of `shape` and like the first given tensor, or None where no backend takes them.

    Backends have no gradients, so none is asked where those may be wanted.
    """
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    if torch.is_grad_enabled() or not all(map(is_plain, tensors)):
        return None
    result = _call(hook, given)
    first = tensors[0]
    if result is None:
        return None
    if type(result) is not Tensor or (result.shape, result.dtype, result.device) != (shape, first.dtype, first.device):
        got = _described(result) if isinstance(result, Tensor) else f"{result!r:.200}"
        expected = f"{tuple(shape)} of {str(first.dtype).removeprefix('torch.')} on {first.device}"
        raise PluginError(f"{_plugin_that_gave(hook, given)}: {hook} returned {got}; expected a tensor {expected}")
    return result


def _call(hook: str, given: Mapping[str, Any]) -> Any:
    """The hook's first result that isn't None, as pluggy gives it."""
    caller: HookCaller = getattr(hooks(), hook)
    if not caller.get_hookimpls():
        return None
    try:
        return caller(**given)
    except Exception as error:
        raise PluginError(
            f"{_plugin_that_raised(caller, error)}: {hook} raised {type(error).__name__}: {error}. "
            "XENT_METRICS_PLUGINS=a,b loads only the plugins named"
        ) from error


def _plugin_that_raised(caller: HookCaller, error: Exception) -> str:
    """The plugin whose function is in the traceback; all that implement the hook if none is."""
    running = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    implementations = caller.get_hookimpls()
    found = [each.plugin_name for each in implementations if getattr(each.function, "__code__", None) in running]
    return ", ".join(found or [each.plugin_name for each in implementations])


def _plugin_that_gave(hook: str, given: Mapping[str, Any]) -> str:
    """The plugin that answers first, found by asking each one again: for an error message."""
    implementations = getattr(hooks(), hook).get_hookimpls()
    for each in reversed(implementations):  # pluggy's order
        if not (each.hookwrapper or each.wrapper) and each.function(*map(given.get, each.argnames)) is not None:
            return str(each.plugin_name)
    return ", ".join(each.plugin_name for each in implementations)


def _problem(result: Any, rows: Tensor) -> str:
    """What is wrong with a backend's result; empty if nothing is."""
    if not isinstance(result, tuple | list) or [type(column) for column in result] != [Tensor] * 3:
        return f"{result!r:.200}; expected three tensors: nll, confidence, correct"
    wide = torch.float64 if result[0].dtype == torch.float64 else torch.float32
    for column, dtype in zip(result, (wide, wide, torch.bool), strict=True):
        if column.shape != rows.shape[:1] or column.dtype != dtype or column.device != rows.device:
            return (
                f"{', '.join(map(_described, result))}; expected nll and confidence in float32 or wider and "
                f"correct as bool, each of shape ({len(rows)},) on {rows.device}"
            )
    return ""


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
