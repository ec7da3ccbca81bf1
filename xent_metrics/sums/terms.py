"""What a metric sums: terms of its own, by name, and shared sums, which several metrics read.

A sum belongs to the metric that computes its terms: two metrics that give the same name to different terms each keep
their own. Only a `SharedSum` is taken once for all metrics that name it, and its terms come from the object itself, so
that a name can't say one thing and mean another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.scores import TokenScores

__all__ = ["NATS", "TOKENS", "Binned", "SharedSum", "Terms", "check_shared_sum"]


@dataclass(frozen=True)
class Binned:
    """Terms that are summed by bin.

    Attributes:
        values: the terms, of any shape.
        bins: for each of them an index in ``[0, num_bins)``.
        num_bins: the number of bins.
    """

    values: Tensor
    bins: Tensor
    num_bins: int


#: The terms of one sum, or of one sum per bin.
Terms = Tensor | Binned


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
        return scores.weighted(torch.ones_like(scores.counted, dtype=torch.int64))


#: Σ weight · nll, in nats.
NATS = _Nats()
#: Σ weight: how many rows count.
TOKENS = _Tokens()
