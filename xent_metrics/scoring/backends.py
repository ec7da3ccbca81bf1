"""Asks plugins for faster scores of plain rows, and checks what they return.

`score_backend` scores rows of logits, `linear_cross_entropy_backend` rows of hidden states. Without such a plugin torch
scores them, and asking costs a few microseconds per block of rows. The scores have the same names either way. An error
names the plugin that breaks the hook's contract.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pluggy import HookCaller, HookImpl
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public name for it

from xent_metrics.errors import PluginError
from xent_metrics.hookspecs import hooks
from xent_metrics.scoring.scores import ExtraScore

__all__ = ["described", "first_result", "first_to_accept", "is_plain", "is_traced", "score_by_backend"]

_NAMES = ("nll", "confidence", "correct")


def is_plain(tensor: Tensor) -> bool:
    """True for a tensor with memory of its own: not traced, not fake, not another subclass."""
    return type(tensor) is Tensor and not is_traced(tensor)


def is_traced(tensor: Tensor) -> bool:
    """True for a tensor that `torch.compile` traces or torch.func transforms."""
    return torch.compiler.is_compiling() or is_functorch_wrapped_tensor(tensor)


def score_by_backend(
    hook: str, extra_scores: Mapping[str, ExtraScore], *, need_all: bool = False, **given: Any
) -> dict[str, Tensor] | None:
    """Scores from the first backend that accepts these rows; None if there is none.

    Args:
        hook: the name of the hook.
        extra_scores: the extra scores that are wanted.
        need_all: whether a backend must give all of them.
        given: the hook's other arguments; the rows come first.

    Returns:
        `nll`, `confidence` and `correct`, each ``(N,)``, and the extra scores that the backend gave, by name.

    Raises:
        PluginError: a backend raised, or returned something else than the hook's contract says.
    """
    rows = next(iter(given.values()))
    if not (all(is_plain(value) for value in given.values() if isinstance(value, Tensor)) and len(rows)):
        return None
    given["extra_scores"] = extra_scores
    result = first_result(hook, _Contract(rows, extra_scores, need_all).problem, **given)
    if result is None:
        return None
    return dict(zip(_NAMES, result, strict=False)) | dict(*result[3:])


def first_result(hook: str, problem: Callable[[Any], str] | None = None, /, **given: Any) -> Any:
    """Call a hook and return the first result; None if no plugin gives one.

    Args:
        hook: its name.
        problem: says what is wrong with a result; an empty string if nothing is.
        given: its arguments.

    Raises:
        PluginError: a plugin raised, or returned something wrong.
        torch.OutOfMemoryError: a plugin ran out of the device's memory.
    """
    caller: HookCaller = getattr(hooks(), hook)
    if not caller.get_hookimpls():
        return None
    try:
        result = caller(**given)
    except torch.OutOfMemoryError:
        raise  # not the plugin's fault: whoever called goes on with fewer rows
    except Exception as error:
        raise PluginError(
            f"{_plugin_that_raised(caller, error)}: {hook} raised {type(error).__name__}: {error}. "
            "XENT_METRICS_PLUGINS=a,b loads only the plugins named"
        ) from error
    if result is not None and problem is not None and (text := problem(result)):
        raise PluginError(f"{_plugin_that_returned(hook, given, problem)}: {hook} returned {text}")
    return result


def first_to_accept(hook: str, /, **given: Any) -> str | None:
    """The plugin whose result `first_result` would return; None if no plugin gives one. What a plugin raises is raised."""
    for each in reversed(getattr(hooks(), hook).get_hookimpls()):  # the order in which pluggy calls them
        if not (each.wrapper or each.hookwrapper) and each.function(*map(given.get, each.argnames)) is not None:
            return str(each.plugin_name)
    return None


def _plugin_that_raised(caller: HookCaller, error: Exception) -> str:
    """The plugin of the innermost hook function in the traceback: a wrapper is further out than what it wraps."""
    implementations = caller.get_hookimpls()
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        raised = [each for each in implementations if getattr(each.function, "__code__", None) is frame.f_code]
        if raised:
            return _names(raised)
    return _names(implementations)


def _plugin_that_returned(hook: str, given: Mapping[str, Any], problem: Callable[[Any], str]) -> str:
    """The plugin that returned something wrong, found by asking again: the first backend, or else a wrapper around it."""
    implementations: list[HookImpl] = getattr(hooks(), hook).get_hookimpls()
    wrappers = [each for each in implementations if each.wrapper or each.hookwrapper]
    for each in reversed(implementations):  # the order in which pluggy calls them
        result = None if each in wrappers else each.function(*map(given.get, each.argnames))
        if result is not None:
            return each.plugin_name if problem(result) else _names(wrappers)
    return _names(wrappers or implementations)


def _names(implementations: list[HookImpl]) -> str:
    return ", ".join(each.plugin_name for each in implementations)


class _Contract(NamedTuple):
    """What a backend has to return for these rows."""

    rows: Tensor
    extra_scores: Mapping[str, ExtraScore]
    need_all: bool

    def problem(self, result: Any) -> str:
        """What is wrong with a backend's result; empty if nothing is."""
        if not isinstance(result, tuple | list) or [type(column) for column in result[:3]] != [Tensor] * 3:
            return f"{described(result)}; expected three tensors: nll, confidence, correct"
        if len(result) > 4 or not all(isinstance(extras, Mapping) for extras in result[3:]):
            return f"{described(result)}; expected three tensors and, perhaps, the extra scores by name"
        wide = torch.float64 if result[0].dtype == torch.float64 else torch.float32
        for column, dtype in zip(result, (wide, wide, torch.bool), strict=False):
            if not self._fits(column) or column.dtype != dtype:
                return (
                    f"{described(result[:3])}; expected nll and confidence in float32 or wider and "
                    f"correct as bool, each of shape ({len(self.rows)},) on {self.rows.device}"
                )
        return self._problem_of_extras(*result[3:])

    def _problem_of_extras(self, extras: Mapping[str, Any] | None = None) -> str:
        extras = extras or {}
        wanted = f"expected {', '.join(self.extra_scores) or 'none'}"
        if unknown := extras.keys() - self.extra_scores.keys():
            return f"extra scores {described(sorted(unknown))}, which aren't wanted; {wanted}"
        if self.need_all and (missing := self.extra_scores.keys() - extras.keys()):
            return f"no extra score {', '.join(sorted(missing))}; {wanted}, or None for a backend that can't give all"
        for name, column in extras.items():
            shape = self.extra_scores[name].shape
            narrow = isinstance(column, Tensor) and column.dtype in (torch.float16, torch.bfloat16)
            if type(column) is not Tensor or not self._fits(column, shape) or narrow:
                return (
                    f"the extra score {name!r} as {described(column)}; expected whole numbers, bools, or floats in "
                    f"float32 or wider, of shape {(len(self.rows), *shape)} on {self.rows.device}"
                )
        return ""

    def _fits(self, column: Tensor, shape: tuple[int, ...] = ()) -> bool:
        return column.shape == (len(self.rows), *shape) and column.device == self.rows.device


def described(value: Any) -> str:
    """What a plugin returned, for an error: of tensors only their shape, dtype and device."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return f"{value!r:.200}"
