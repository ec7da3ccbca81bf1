"""Reads host configurations: metrics named with their options, and objects named by import path."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from xent_metrics.errors import MetricOptionError
from xent_metrics.plugins import get_metric
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import StandardError

__all__ = ["build_metrics", "named_object"]


def build_metrics(
    metrics: list[str | dict[str, Any]], *, standard_errors: bool, **shared: Any
) -> dict[str, TokenMetric]:
    """Build the metrics that a configuration lists, by the key under which they are logged.

    Args:
        metrics: registered names, or ``{"metric": name, **options}``. The option `name` is the key. A string as
            `token_bytes` is the import path of a tokenizer, of a table, or of a function without arguments that returns one.
        standard_errors: add ``<key>_stderr`` for each metric that has a standard error.
        shared: options for all metrics.

    Raises:
        MetricOptionError: not such a list, or two entries with one key. UnknownMetricError: a name isn't registered.

    >>> list(build_metrics([{"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}], standard_errors=True))
    ['bits_per_token', 'bits_per_token_stderr']
    """
    if isinstance(metrics, str | Mapping) or not metrics:
        raise MetricOptionError(f"expected metrics as a list of names, or of dicts with `metric`; got {metrics!r}")
    built: dict[str, TokenMetric] = {}
    for entry in metrics:
        key, metric = _build(entry, shared)
        if key in built:
            raise MetricOptionError(f"{key!r} appears twice in metrics; give one of them another `name`")
        built[key] = metric
    if standard_errors:
        built |= {f"{key}_stderr": StandardError(metric) for key, metric in built.items() if metric.has_standard_error}
    return built


def _build(entry: Any, shared: dict[str, Any]) -> tuple[str, TokenMetric]:
    options = dict(entry) if isinstance(entry, Mapping) else {"metric": entry}
    if not isinstance(options.get("metric"), str):
        hint = (
            f". Write {{'metric': {entry.name!r}, …}} instead of the object" if isinstance(entry, TokenMetric) else ""
        )
        raise MetricOptionError(
            f"expected a metric's name, or a dict with `metric` and its options; got {entry!r}{hint}"
        )
    name = options.pop("metric")
    key = options.pop("name", name)
    if isinstance(options.get("token_bytes"), str):
        options["token_bytes"] = named_object(options["token_bytes"], call=True)
    return key, get_metric(name, **options, **shared)


def named_object(path: str, *, call: bool = False) -> Any:
    """The object at an import path, ``package.module:name`` or ``package.module.name``.

    Args:
        path: the import path.
        call: if the object is a function without required arguments, return its result instead.

    >>> named_object("math:tau")
    6.283185307179586
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise MetricOptionError(
            f"{path!r} names no object: {error}. Expected an import path, package.module:name, that Python can import here; "
            "its folder may have to be in PYTHONPATH"
        ) from error
    if call and inspect.isfunction(found) and not _needs_arguments(found):
        return found()
    return found


def _needs_arguments(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
