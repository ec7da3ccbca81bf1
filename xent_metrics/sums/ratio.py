"""RatioMetric: the common case, a ratio of two sums, defined by one short method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum
from xent_metrics.sums.terms import Terms

__all__ = ["RatioMetric"]


class RatioMetric(TokenMetric):
    """Σ per_token · weight / Σ denominator · weight.

    >>> from xent_metrics import RatioMetric
    >>> class MeanProbability(RatioMetric):
    ...     name = "mean_probability"
    ...     def per_token(self, scores):
    ...         return scores.prob
    >>> metric = MeanProbability()
    >>> metric.update(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    @abstractmethod
    def per_token(self, scores: TokenScores) -> Tensor:
        """The numerator's term of each row, of the shape of ``scores.nll``."""

    def denominator(self, scores: TokenScores) -> Tensor:
        """The denominator's term of each row; 1 unless overridden."""
        return torch.ones_like(scores.counted, dtype=torch.int64)

    def sum_names(self) -> tuple[str | SharedSum, str | SharedSum]:
        """The numerator and the denominator: a name for a sum of this metric's own, or a `SharedSum` in its place."""
        counts_rows = type(self).denominator is RatioMetric.denominator
        return f"{self.described()}.numerator", TOKENS if counts_rows else f"{self.described()}.denominator"

    def shared_sums(self) -> Sequence[SharedSum]:
        return [each for each in self.sum_names() if isinstance(each, SharedSum)]

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        methods = zip(self.sum_names(), (self.per_token, self.denominator), strict=True)
        own = {name: method(scores) for name, method in methods if isinstance(name, str)}
        if len({*self.ratio_names()}) == 1 and own:
            raise MetricOptionError(f"{self.name}: numerator and denominator have one name, {self.ratio_names()[0]!r}")
        for name, term in own.items():
            if not isinstance(term, Tensor) or term.shape != scores.counted.shape:
                method_name = "per_token" if name == self.sum_names()[0] else "denominator"
                got = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise InvalidInputError(
                    f"{self.name}: {method_name} gives a term of each row, here a tensor {tuple(scores.counted.shape)}; "
                    f"got {got}"
                )
        return {name: scores.weighted(term) for name, term in own.items()}

    def ratio_names(self) -> tuple[str, str]:
        """The names of the numerator and the denominator among the sums."""
        numerator, denominator = (each if isinstance(each, str) else each.name for each in self.sum_names())
        return numerator, denominator

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        numerator, denominator = self.ratio_names()
        return sums[numerator] / sums[denominator]
