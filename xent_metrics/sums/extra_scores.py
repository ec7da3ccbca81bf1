"""When two extra scores are the same, so that metrics may share one under one name.

A metric may bind a method or make a closure each time it is asked, so functions are compared by their code and by what
they hold: a metric counts by its class and options, plain values and arrays by value, everything else by identity.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor

from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.sums.definition import MetricDefinition

__all__ = ["extra_score_key"]

_PLAIN = (bool, bytes, float, int, str, type, type(None))


def extra_score_key(score: ExtraScore) -> Hashable:
    """Equal for extra scores that compute the same.

    >>> def scaled(factor):
    ...     return ExtraScore(lambda log_prob, index: factor * log_prob.amax(-1))
    >>> extra_score_key(scaled(2)) == extra_score_key(scaled(2)), extra_score_key(scaled(2)) == extra_score_key(scaled(3))
    (True, False)
    """
    return _function_key(score.function), score.shape, score.of


def _function_key(function: Any) -> Hashable:
    if isinstance(function, functools.partial):
        options = ((name, _value_key(value)) for name, value in sorted(function.keywords.items()))
        return "partial", _function_key(function.func), *map(_value_key, function.args), *options
    if isinstance(function, MethodType):
        return "method", _function_key(function.__func__), _value_key(function.__self__)
    if isinstance(function, FunctionType):
        cells = (cell.cell_contents for cell in function.__closure__ or ())
        held = (*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        return "function", function.__code__, _Identity(function.__globals__), *map(_value_key, held)
    return function if isinstance(function, Hashable) else _Identity(function)


def _value_key(value: Any) -> Hashable:
    if isinstance(value, MetricDefinition):
        # `described` has the content of arrays; of other objects it may have less.
        options = (each for each in value.given_options().values() if not isinstance(each, Tensor | np.ndarray))
        return type(value), value.described(), *map(_value_key, options)
    if isinstance(value, tuple | list):
        return type(value), *map(_value_key, value)
    return (type(value), value) if isinstance(value, _PLAIN) else _Identity(value)


class _Identity:
    """Equal for one object only, which it keeps alive: another might get the `id` of an object that is gone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
