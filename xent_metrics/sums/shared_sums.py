"""Which sums metrics share, and how each is taken once of the same scores.

A sum belongs to the metric that computes its terms: two metrics that give one name to different terms each keep their own.
Only a `SharedSum` is taken once for all metrics that name it, and its terms come from the object itself, so that a name
can't say one thing and mean another.

A `TokenScores` keeps the sums that were taken of it (taking.py) in its `memo`, by key. Equal `SharedSum` objects have one
key, unequal ones different keys, and every metric has keys of its own for its own sums. Keys are numbered strings, since
`torch.compile` traces those. They are valid in one process only, so copied or unpickled metrics make new ones, and
copied or pickled scores have an empty `memo`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.terms import Terms

__all__ = [
    "CONFIDENCE", "CORRECT", "NATS", "TOKENS", "ExtraSum", "SharedSum", "check_shared_sum", "own_keys", "remember",
    "shared_key",
]  # fmt: skip


class SharedSum(ABC):
    """A sum that several metrics read: taken, added up and named once.

    A subclass is a frozen dataclass. Two objects are the same sum if they are of one class and have equal fields, so
    `terms` may depend on the fields and on the scores, and on nothing else.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Surprises(SharedSum):
    ...     threshold: float
    ...     @property
    ...     def name(self):
    ...         return f"surprises[nll > {self.threshold}]"
    ...     def terms(self, scores):
    ...         return scores.weighted(scores.nll > self.threshold)
    >>> Surprises(5.0) == Surprises(5.0), Surprises(5.0).name
    (True, 'surprises[nll > 5.0]')
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The sum's name in a metric's layout and in logs; it carries every option."""

    @abstractmethod
    def terms(self, scores: TokenScores) -> Terms:
        """What is summed: ``(…)`` or ``(…, K)``, weighted, 0 where a row doesn't count."""


def check_shared_sum(shared: SharedSum) -> None:
    """Raise unless all that `terms` may depend on is in fields that can be compared.

    Raises:
        MetricOptionError: the class isn't a frozen dataclass itself, or a field can't be hashed.
    """
    cls = type(shared)
    options = vars(cls).get("__dataclass_params__")  # a base's would not know of the class' own attributes
    if options is None or not (options.frozen and options.eq):
        raise MetricOptionError(
            f"the shared sum {cls.__name__} is not a frozen dataclass, so it can't be told from others; decorate the class "
            "with @dataclass(frozen=True)"
        )
    try:
        hash(shared)
    except TypeError as error:
        raise MetricOptionError(
            f"the fields of {shared!r} can't be compared: {error}; use tuples and numbers"
        ) from error


@dataclass(frozen=True)
class _Nats(SharedSum):
    @property
    def name(self) -> str:
        return "nats"

    def terms(self, scores: TokenScores) -> Tensor:
        return scores.weighted(scores.nll)


@dataclass(frozen=True)
class _Tokens(SharedSum):
    @property
    def name(self) -> str:
        return "tokens"

    def terms(self, scores: TokenScores) -> Tensor:
        return scores.weighted(torch.ones_like(scores.counted, dtype=torch.float32))


@dataclass(frozen=True)
class _Confidence(SharedSum):
    @property
    def name(self) -> str:
        return "confidence"

    def terms(self, scores: TokenScores) -> Tensor:
        assert scores.confidence is not None
        return scores.weighted(scores.confidence)


@dataclass(frozen=True)
class _Correct(SharedSum):
    @property
    def name(self) -> str:
        return "correct"

    def terms(self, scores: TokenScores) -> Tensor:
        assert scores.correct is not None
        return scores.weighted(scores.correct)


@dataclass(frozen=True)
class ExtraSum(SharedSum):
    """Σ weight · an extra score of the scores, by its name there."""

    extra_score: str

    @property
    def name(self) -> str:
        return self.extra_score

    def terms(self, scores: TokenScores) -> Tensor:
        return scores.weighted(scores.extra_scores[self.extra_score])


#: Σ weight · nll, in nats.
NATS = _Nats()
#: Σ weight: how many rows count.
TOKENS = _Tokens()
#: Σ weight · the top-1 probability.
CONFIDENCE = _Confidence()
#: Σ weight over the rows with the target as the top-1 class.
CORRECT = _Correct()


_shared_keys: dict[tuple[SharedSum, str], str] = {}
_numbers = itertools.count()


def shared_key(shared: SharedSum) -> str:
    """The key of a shared sum, the same for equal ones.

    Raises:
        MetricOptionError: its fields can't tell it from others.
    """
    check_shared_sum(shared)
    told_apart = shared, repr(shared)  # 1 == True, and 0.0 == −0.0
    return _shared_keys.setdefault(told_apart, f"{shared.name} #{next(_numbers)}")


def own_keys(names: Iterable[str]) -> dict[str, str]:
    """New keys, by name, for the own sums of one metric object."""
    return {name: f"{name} #{next(_numbers)}" for name in names}


def remember(scores: TokenScores, key: str, make: Callable[[], Tensor]) -> Tensor:
    """The result of `make`, computed once for these scores; only the caller uses this `key`."""
    if key not in scores.memo:
        scores.memo[key] = make()
    return scores.memo[key]
