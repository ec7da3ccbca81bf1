"""The options of a metric: which it takes, which it doesn't, and how they read in names."""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Iterable, Sequence
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
    """An option as it appears in names: the same in every process.

    A tensor or a NumPy array by the hash of its content, which `repr` shortens; a set in a fixed order.
    """
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(readable, value)))}}}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return _with_hash(value.shape, value.tobytes())
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _with_hash(value.shape, content)
    return repr(value)


def _with_hash(shape: Sequence[int], content: bytes) -> str:
    return f"{tuple(shape)}#{hashlib.sha256(content).hexdigest()[:12]}"
