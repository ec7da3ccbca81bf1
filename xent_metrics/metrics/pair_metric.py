"""PairMetric: the base of metrics of two models over the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.scoring.scores import ExtraScore, RowKind, TokenScores
from xent_metrics.sums.metric import TokenMetric

__all__ = ["PairMetric"]


class PairMetric(TokenMetric):
    """The base of metrics of two models.

    They take ``update(logits, other_logits)``, ``update((logits, other_logits), target)``, or scores from `score_pair`.

    Args:
        temperature: divides both logits.
        kwargs: as for `TokenMetric`.
    """

    pair_score: ClassVar[str]
    row_kinds: ClassVar[frozenset[RowKind]] = frozenset({"token"})

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise MetricOptionError(f"{self.name}: temperature is positive; got {temperature!r}")
        self.temperature = temperature
        self.requires = frozenset({self.pair_score})

    def scoring_options(self) -> dict[str, Any]:
        return {"pair, temperature": self.temperature}

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
    ) -> TokenScores:
        """The scores that `update` would add."""
        if isinstance(logits, TokenScores):
            return super().score(logits, target, weight=weight)
        if extra_scores:
            raise InvalidInputError(
                f"{self.name} compares two models; {', '.join(extra_scores)} are scores of one: use two collections"
            )
        if not isinstance(logits, tuple):
            logits, target = (logits, target), None
        if len(logits) != 2 or logits[1] is None or not as_tensor(logits[1]).is_floating_point():
            raise InvalidInputError(
                f"{self.name} takes update(logits, other_logits) or update((logits, other_logits), target)"
            )
        base, other = logits
        return score_pair(
            base, other, target, temperature=self.temperature, ignore_index=self.ignore_index, weight=weight
        )
