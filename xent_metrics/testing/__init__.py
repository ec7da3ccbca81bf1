"""Tests for metrics: `check_metric` checks the contract that every metric keeps.

`no_host_sync` finds what waits for the device, `no_float64` what an MPS device can't run. Names are imported when they are
first used, because pytest imports `pytest_plugin` in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xent_metrics.testing.case import made_up_batch
    from xent_metrics.testing.contract import check_metric
    from xent_metrics.testing.float64 import no_float64
    from xent_metrics.testing.host_sync import no_host_sync

__all__ = ["check_metric", "made_up_batch", "no_float64", "no_host_sync"]

_HOME = {"check_metric": "contract", "made_up_batch": "case", "no_float64": "float64", "no_host_sync": "host_sync"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
