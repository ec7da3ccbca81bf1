"""Metrics around a metric: by group, and its standard error."""

from xent_metrics.wrappers.grouped import Grouped
from xent_metrics.wrappers.grouping import Document, Frequency, Grouping, Label, Position, in_groups
from xent_metrics.wrappers.standard_error import StandardError

__all__ = ["Document", "Frequency", "Grouped", "Grouping", "Label", "Position", "StandardError", "in_groups"]
