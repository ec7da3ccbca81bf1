"""The options of a metric: which it takes, which it doesn't, and how they read in names."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._tensor_str import printoptions  # private; a context around `torch.set_printoptions`, read in torch 2.13

from xent_metrics.errors import MetricOptionError

__all__ = ["check_options", "options_of", "readable"]

_LONGEST = 1000  # characters of an object's `repr` in a name, before a hash of the rest
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

    A tensor or an array is shown by its dtype, its shape and the hash of its content, which `repr` shortens; within an object
    they are shown whole. A set is in a fixed order, an object without a `repr` of its own is shown by its public attributes,
    and addresses are left out.
    """
    if type(value) in (str, bytes, bool, int, float, type(None)):
        return repr(value)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return readable(value.item())
    if isinstance(value, list | tuple):
        return f"{type(value).__name__ if type(value) not in (list, tuple) else ''}{_bracketed(value)}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(readable, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{readable(key)}: {readable(each)}' for key, each in value.items())}}}"
    if isinstance(value, Tensor):
        return _tensor(value)
    if hasattr(value, "__array__") and not isinstance(value, type):
        array = np.asarray(value)
        if array.dtype.hasobject:
            return f"{type(value).__name__}({readable(array.tolist())})"
        return _with_hash(array.shape, str(array.dtype), array.tobytes())
    return _object(value)


def _tensor(value: Tensor) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    try:
        whole = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _with_hash(value.shape, dtype, whole.view(torch.uint8).numpy().tobytes())
    except (NotImplementedError, RuntimeError):  # it has no data, or isn't dense
        return f"{dtype}{tuple(value.shape)} on {value.device}"


def _object(value: Any) -> str:
    cls = type(value)
    if getattr(cls, "__repr__", None) is object.__repr__ and hasattr(value, "__dict__"):
        public = {name: each for name, each in vars(value).items() if not name.startswith("_")}
        with suppress(RecursionError):  # of objects that hold each other
            shown = ", ".join(f"{name}={readable(each)}" for name, each in public.items())
            return f"{cls.__module__}.{cls.__qualname__}({shown})"
    with (
        np.printoptions(threshold=sys.maxsize, floatmode="unique"),
        printoptions(threshold=sys.maxsize, precision=17, sci_mode=True),
    ):
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…#{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _bracketed(values: Sequence[Any]) -> str:
    inside = ", ".join(map(readable, values))
    return f"[{inside}]" if isinstance(values, list) else f"({inside}{',' * (len(values) == 1)})"


def _with_hash(shape: Sequence[int], dtype: str, content: bytes) -> str:
    return f"{dtype}{tuple(shape)}#{hashlib.sha256(content).hexdigest()[:12]}"
