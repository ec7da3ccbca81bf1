"""lm-evaluation-harness: tasks with our metrics (`XentTask`), models with token scores (`TorchLM`, `XentHFLM`).

Who syncs: lm-eval gathers per-document values to rank 0 and aggregates them there alone, so values are packed sums that
rank 0 adds up; nothing here makes a collective of its own.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from xent_metrics.errors import MissingExtraError

if find_spec("lm_eval") is None:
    raise MissingExtraError("xent_metrics.hosts.lm_eval needs lm-eval: pip install 'xent-metrics[lm-eval]'")

if TYPE_CHECKING:
    from xent_metrics.hosts.lm_eval.models.hf_lm import XentHFLM
    from xent_metrics.hosts.lm_eval.models.torch_lm import TorchLM
    from xent_metrics.hosts.lm_eval.task import XentTask

__all__ = ["TorchLM", "XentHFLM", "XentTask"]

_HOME = {"XentTask": ".task", "TorchLM": ".models.torch_lm", "XentHFLM": ".models.hf_lm"}


def __getattr__(name: str) -> Any:
    """Import each class when it is asked for: transformers is slow to load, and a task doesn't need it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
