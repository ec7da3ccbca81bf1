"""What a configuration can name: metrics with their options, and objects by their import path."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from xent_metrics.analysis import StandardError
from xent_metrics.errors import MetricOptionError
from xent_metrics.plugins import get_metric
from xent_metrics.sums.metric import TokenMetric

__all__ = ["build_metrics", "named_object"]


def build_metrics(
    metrics: list[str | dict[str, Any]], *, standard_errors: bool, **shared: Any
) -> dict[str, TokenMetric]:
    """Metrics by the key they are logged under, from names and from ``{"metric": name, **options}``, and `shared` options.

    A string as `token_bytes` is the import path of a tokenizer, a table, or a function without arguments that gives one.

    >>> list(build_metrics([{"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}], standard_errors=True))
    ['bits_per_token', 'bits_per_token_stderr']
    """
    if isinstance(metrics, str | Mapping) or not metrics:
        raise MetricOptionError(f"metrics is a list of names or of dicts with a `metric`; got {metrics!r}")
    built: dict[str, TokenMetric] = {}
    for entry in metrics:
        key, metric = _one(entry, shared)
        if key in built:
            raise MetricOptionError(f"{key!r} stands twice in metrics; give one of them another `name`")
        built[key] = metric
    if standard_errors:
        built |= {f"{key}_stderr": StandardError(metric) for key, metric in built.items() if metric.has_standard_error}
    return built


def _one(entry: Any, shared: dict[str, Any]) -> tuple[str, TokenMetric]:
    options = dict(entry) if isinstance(entry, Mapping) else {"metric": entry}
    if not isinstance(options.get("metric"), str):
        instead = (
            f". Give {{'metric': {entry.name!r}, …}} instead of the object" if isinstance(entry, TokenMetric) else ""
        )
        raise MetricOptionError(
            f"expected a metric's name, or a dict with `metric` and its options; got {entry!r}{instead}"
        )
    name = options.pop("metric")
    key = options.pop("name", name)
    if isinstance(options.get("token_bytes"), str):
        options["token_bytes"] = named_object(options["token_bytes"], call=True)
    return key, get_metric(name, **options, **shared)


def named_object(path: str, *, call: bool = False) -> Any:
    """The object at an import path, ``package.module:name`` or ``package.module.name``.

    With `call`, what it returns where it is a function without required arguments.

    >>> named_object("math:tau")
    6.283185307179586
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise MetricOptionError(
            f"{path!r} names no object: {error}. Expected an import path, package.module:name, of something that Python can "
            "import here (its folder may have to be in PYTHONPATH)"
        ) from error
    if call and inspect.isfunction(found) and not _needs_arguments(found):
        return found()
    return found


def _needs_arguments(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
