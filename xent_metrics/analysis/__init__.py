"""Standard errors, confidence intervals, and comparisons of runs, with a report.

Names are imported when they are first used (PEP 562), so that results files can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xent_metrics.analysis.comparison import Comparison, compare, same_documents
    from xent_metrics.analysis.intervals import Interval, bootstrap, delta_interval
    from xent_metrics.analysis.multiplicity import benjamini_hochberg, corrected, holm
    from xent_metrics.wrappers.standard_error import StandardError, standard_error, standard_error_from_moments

__all__ = [
    "Comparison",
    "Interval",
    "StandardError",
    "benjamini_hochberg",
    "bootstrap",
    "compare",
    "corrected",
    "delta_interval",
    "holm",
    "same_documents",
    "standard_error",
    "standard_error_from_moments",
]

#: The names that each module gives to the package.
_NAMES = {
    "xent_metrics.analysis.comparison": "Comparison compare same_documents",
    "xent_metrics.analysis.intervals": "Interval bootstrap delta_interval",
    "xent_metrics.analysis.multiplicity": "benjamini_hochberg corrected holm",
    "xent_metrics.wrappers.standard_error": "StandardError standard_error standard_error_from_moments",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
