"""The hooks that a plugin may implement; `hookimpl` marks its functions.

A plugin is a module named in the entry point group `xent_metrics`. Hooks get a callable to register with rather than
return values, so that an error points at the line that registered.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .metric import TokenMetric

__all__ = ["PROJECT", "hookimpl", "hookspec", "register_metrics", "register_task_configs"]

PROJECT = "xent_metrics"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_metrics(register: Callable[[type[TokenMetric]], None]) -> None:
    """Register metrics: call ``register(MetricClass)`` for each; its class attribute `name` is the name users write."""


@hookspec
def register_task_configs(register: Callable[[str | PathLike[str]], None]) -> None:
    """Register folders of lm-eval task YAMLs: call ``register(path)`` for each."""
