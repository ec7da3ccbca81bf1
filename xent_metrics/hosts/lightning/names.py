"""Objects by their import path, as a YAML can name them: ``package.module:name`` or ``package.module.name``."""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

from ...errors import MetricOptionError

__all__ = ["named_object"]


def named_object(path: str, *, call: bool = False) -> Any:
    """The object at an import path; with `call`, what it returns where it is a function without required arguments.

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
