"""Results of our lm-eval models: the plain values that lm-eval expects, which carry their token scores.

A subclass of `tuple` (loglikelihood), `float` (rolling) or `str` (generation) passes through lm-eval's filters, caches and
gathers as the plain value does, and `XentTask` reads its `scores`. All can be pickled, so `--use_cache` and several processes
keep the scores.
"""

from __future__ import annotations

import math
from typing import Any

from xent_metrics.scoring.scores import TokenScores

__all__ = ["ScoredLoglikelihood", "ScoredRolling", "ScoredText", "total_loglikelihood"]


class ScoredLoglikelihood(tuple[float, bool]):
    """``(loglikelihood, is_greedy)`` of a continuation, with its token scores."""

    scores: TokenScores

    def __new__(cls, scores: TokenScores) -> ScoredLoglikelihood:
        assert scores.correct is not None
        result = super().__new__(cls, (total_loglikelihood(scores), bool(scores.correct.all())))
        result.scores = scores.to("cpu")
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.scores,)


class ScoredRolling(float):
    """The loglikelihood of a whole text, with its token scores."""

    scores: TokenScores

    def __new__(cls, scores: TokenScores) -> ScoredRolling:
        result = super().__new__(cls, total_loglikelihood(scores))
        result.scores = scores.to("cpu")
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.scores,)


class ScoredText(str):
    """A generated text, with the loglikelihood of the text after its context."""

    loglikelihood: ScoredLoglikelihood

    def __new__(cls, text: str, loglikelihood: ScoredLoglikelihood) -> ScoredText:
        result = super().__new__(cls, text)
        result.loglikelihood = loglikelihood
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (str(self), self.loglikelihood)


def total_loglikelihood(scores: TokenScores) -> float:
    """−Σ nll over the rows that count, correctly rounded in any order."""
    return -math.fsum(scores.weighted(scores.nll).reshape(-1).tolist()) + 0.0
