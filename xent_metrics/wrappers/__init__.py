"""Metrics around a metric: by group, and its standard error."""
