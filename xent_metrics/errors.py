"""The errors that this package raises; each says what was got, what was expected and how to fix it."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "CaptureError",
    "ComparisonError",
    "EngineError",
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
    """Tensors have shapes, dtypes or values that can't be scored."""


class InvalidTargetError(InvalidInputError):
    """Targets lie outside ``[0, V)`` and aren't ``ignore_index``; counted in `update`, raised in `compute`."""


class CapacityError(XentMetricsError, OverflowError):
    """A sum left the range in which it is exact."""


class CaptureError(XentMetricsError, RuntimeError):
    """A metric is updated while a CUDA graph is captured; replays of the graph would not update it."""


class MissingScoreError(XentMetricsError, LookupError):
    """A metric needs a score that the host doesn't give."""


class EngineError(XentMetricsError, RuntimeError):
    """A serving engine gives no answer, or one that can't be scored; the message says what it gave."""


class UnknownMetricError(XentMetricsError, LookupError):
    """No loaded plugin registers a metric of this name."""


class ComparisonError(XentMetricsError, ValueError):
    """Runs can't be compared; the message says why."""


class MetricOptionError(XentMetricsError, TypeError):
    """The metric has no such option, or the option can't have this value."""


class PluginError(XentMetricsError):
    """A plugin can't be loaded, registers something invalid, or breaks a hook's contract."""


class SyncError(XentMetricsError, RuntimeError):
    """Adding up over processes failed, or a shared total is out of date; the local sums are unchanged."""


class TokenBytesError(XentMetricsError, ValueError):
    """A tokenizer's ids can't be mapped to UTF-8 byte counts."""


class MissingExtraError(XentMetricsError, ImportError):
    """An optional dependency that this feature needs is not installed."""
