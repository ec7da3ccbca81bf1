"""lm-eval's results files: read without torch, so that tables of hundreds of runs are shown at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xent_metrics.analysis.logged import parse_json
from xent_metrics.errors import ComparisonError

__all__ = ["NO_FILTER", "load_results", "part_of", "reported_values", "rescored_from"]

NO_FILTER = "none"  # lm-eval's name of the filter that passes everything


def load_results(path: Path) -> dict[str, Any]:
    """All that a results file says.

    Raises:
        ComparisonError: it isn't readable, or not lm-eval's.
    """
    results = _load(path)
    if not isinstance(results.get("results"), dict) or not isinstance(results.get("configs"), dict):
        raise ComparisonError(
            f"{path}: expected lm-eval's results with `results` and `configs`; got {', '.join(results) or 'nothing'}. "
            f"The format read is lm-eval 0.4's (this file: {results.get('lm_eval_version', 'no version')})"
        )
    return results


def _load(path: Path) -> dict[str, Any]:
    try:
        results = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path}: not readable as JSON: {error}") from error
    return results if isinstance(results, dict) else {}


def reported_values(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """A task's values and standard errors in the results, by the metric's name, with its filter if there is one."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in found.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, int | float):
            suffix = "" if filter_name == NO_FILTER else f",{filter_name}"
            target = errors if metric.endswith("_stderr") else values
            target[metric.removesuffix("_stderr") + suffix] = float(value)
    return values, errors


def part_of(results: Mapping[str, Any], name: str, problems: list[str], *, where: str = "") -> Mapping[str, Any]:
    """An object in the results; an empty one if it is missing, or if it is something else, which is added to `problems`.

    >>> part_of({"versions": [1]}, "versions", problems := []), problems
    ({}, ["the results' `versions` is of type list in place of an object, and is left out"])
    """
    found = results.get(name)
    if found is not None and not isinstance(found, dict):
        problem = (
            f"the results' {where}`{name}` is of type {type(found).__name__} in place of an object, and is left out"
        )
        problems += [problem] if problem not in problems else []
    return found if isinstance(found, dict) else {}


def rescored_from(results: Mapping[str, Any]) -> str:
    """The results file whose logged tokens `xent rescore` computed a run from; empty for a run of a model."""
    rescored = results.get("rescored")
    return str(rescored.get("run", "")) if isinstance(rescored, Mapping) else ""
