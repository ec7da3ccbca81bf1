"""The options of a metric: which it takes, which it doesn't, and how they read in names."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError

__all__ = ["check_options", "options_of", "readable"]

_TORCHMETRICS = (
    "compute_on_cpu", "compute_with_cache", "dist_sync_fn", "dist_sync_on_step", "distributed_available_fn",
    "process_group", "sync_on_compute",
)  # fmt: skip


def options_of(cls: type, *, until: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class' `__init__`, its own and its bases' as far as keywords are passed on, up to `until`."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is until:
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        found |= {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def check_options(metric: Any, given: Iterable[str]) -> None:
    """Raise for an option that a class of metrics doesn't have, with the nearest that it has."""
    own = metric.options()
    for option in given:
        if option in own or option in _TORCHMETRICS:
            continue
        near = difflib.get_close_matches(option, [*own, *_TORCHMETRICS], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        name = getattr(metric, "name", None)
        raise MetricOptionError(
            f"{name if isinstance(name, str) else metric.__name__} has no option {option!r}.{hint} "
            f"Its options: {', '.join(own)}"
        )


def readable(value: Any) -> str:
    """An option as it appears in names: the same in every process, different for different content.

    A tensor or an array is shown by its dtype, its shape and the hash of its content, which `repr` shortens. A set is
    in a fixed order, an object without a `repr` of its own is shown by its attributes, and addresses are left out.
    """
    if isinstance(value, np.generic):
        return readable(value.item())
    if isinstance(value, list | tuple):
        return f"{type(value).__name__ if type(value) not in (list, tuple) else ''}{_bracketed(value)}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(readable, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{readable(key)}: {readable(each)}' for key, each in value.items())}}}"
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _with_hash(value.shape, str(value.dtype).removeprefix("torch."), content)
    if hasattr(value, "__array__") and not isinstance(value, type):
        array = np.asarray(value)
        if array.dtype.hasobject:
            return f"{type(value).__name__}({readable(array.tolist())})"
        return _with_hash(array.shape, str(array.dtype), array.tobytes())
    if (attributes := _attributes(value)) is not None:
        return f"{type(value).__name__}({', '.join(f'{name}={readable(each)}' for name, each in attributes.items())})"
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):  # of arrays within an object
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object by which it is shown, or None if its `repr` shows it."""
    if isinstance(value, type):
        return None
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    is_plain = isinstance(value, SimpleNamespace) or getattr(type(value), "__repr__", None) is object.__repr__
    return vars(value) if is_plain and hasattr(value, "__dict__") else None


def _bracketed(values: Sequence[Any]) -> str:
    inside = ", ".join(map(readable, values))
    return f"[{inside}]" if isinstance(values, list) else f"({inside}{',' * (len(values) == 1)})"


def _with_hash(shape: Sequence[int], dtype: str, content: bytes) -> str:
    return f"{dtype}{tuple(shape)}#{hashlib.sha256(content).hexdigest()[:12]}"
