"""Every error that a user can meet, each saying what was got, what was expected and how to fix it."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "ComparisonError",
    "InvalidInputError",
    "InvalidTargetError",
    "MetricOptionError",
    "MissingExtraError",
    "MissingScoreError",
    "PluginError",
    "SyncError",
    "TokenBytesError",
    "UnknownMetricError",
    "XentMetricsError",
]


class XentMetricsError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidInputError(XentMetricsError, ValueError):
    """Tensors whose shapes, dtypes or values can't be scored."""


class InvalidTargetError(InvalidInputError):
    """Targets outside ``[0, V)`` that are not ``ignore_index``; counted in `update`, raised in `compute`."""


class CapacityError(XentMetricsError, OverflowError):
    """A sum left the range in which it is exact."""


class MissingScoreError(XentMetricsError, LookupError):
    """A metric needs a score that this host did not give."""


class UnknownMetricError(XentMetricsError, LookupError):
    """No loaded plugin registers a metric of this name."""


class ComparisonError(XentMetricsError, ValueError):
    """Runs that can't be compared, and why."""


class MetricOptionError(XentMetricsError, TypeError):
    """An option that the metric doesn't have, or a value that it can't take."""


class PluginError(XentMetricsError):
    """A plugin that could not be loaded or registers something that isn't valid."""


class SyncError(XentMetricsError, RuntimeError):
    """The sum over processes failed, or is no longer that of what a metric holds; the local sums are untouched."""


class TokenBytesError(XentMetricsError, ValueError):
    """A tokenizer whose ids can't be mapped to UTF-8 byte counts."""


class MissingExtraError(XentMetricsError, ImportError):
    """An optional dependency that this feature needs is not installed."""
