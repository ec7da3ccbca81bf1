"""scipy, which analyses need and the core doesn't."""

from __future__ import annotations

from typing import Any

from xent_metrics.errors import MissingExtraError

__all__ = ["scipy_stats"]


def scipy_stats() -> Any:
    """`scipy.stats`, or an error that says how to install it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("this analysis needs scipy: pip install 'xent-metrics[analysis]'") from error
    return stats
