"""The scores of one document: its tokens, one row for the whole document, or the distribution over its choices.

Who syncs: nobody.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from xent_metrics.scoring.scores import TokenScores, from_loglikelihoods
from xent_metrics.sums.metric import TokenMetric

__all__ = ["DocumentScores", "answer_scores", "choice_scores"]

_LENGTHS = {"num_bytes", "num_words"}


def choice_scores(metric: TokenMetric, loglikelihoods: Sequence[float], gold: int) -> TokenScores:
    """One row: the softmax of the choices' loglikelihoods in float64, with `gold` as the target.

    The metric's own options score it, as they would score logits.

    >>> from xent_metrics import get_metric
    >>> choice_scores(get_metric("cross_entropy"), [-1.0, -1.0], gold=1).nll          # ln 2
    tensor([0.6931], dtype=torch.float64)
    """
    scores = metric.score(torch.tensor([loglikelihoods], dtype=torch.float64), torch.tensor([gold]))
    return dataclasses.replace(scores, row_kind="choice")


def answer_scores(tokens: TokenScores, *, correct: bool) -> TokenScores:
    """One row: a generated answer. Its confidence is the geometric mean of its tokens' probabilities, exp(Σ ln p / tokens).

    An answer without tokens is a row that doesn't count. Reference: Malinin and Gales (2021), Uncertainty estimation in
    autoregressive structured prediction, arXiv:2002.07650, for the normalisation by length.

    >>> from xent_metrics import from_loglikelihoods
    >>> row = answer_scores(from_loglikelihoods([-0.5, -1.5], row_kind="token"), correct=True)
    >>> row.confidence, row.correct                                                     # e⁻¹
    (tensor([0.3679], dtype=torch.float64), tensor([True]))
    """
    losses = tokens.nll[tokens.counted].double().tolist()
    row = from_loglikelihoods([-math.fsum(losses) / max(len(losses), 1)], row_kind="choice")
    return dataclasses.replace(
        row, confidence=row.prob, correct=torch.tensor([correct]), counted=torch.tensor([bool(losses)])
    )


class DocumentScores:
    """The scores of one document.

    Args:
        answer: the result for the whole text, or for the (gold) continuation, from `attach_text`.
        count_bytes: the task's own function.
        count_words: the task's own function.
        loglikelihoods: those of all choices, in multiple choice.
        gold: the index of the right choice, in multiple choice.
    """

    def __init__(
        self,
        answer: Any,
        count_bytes: Callable[[str], int],
        count_words: Callable[[str], int],
        loglikelihoods: Sequence[float] = (),
        gold: int = 0,
    ) -> None:
        self.loglikelihoods, self.gold = loglikelihoods, gold
        self.tokens: TokenScores | None = answer.scores
        self._answer, self._count_bytes, self._count_words = answer, count_bytes, count_words
        self._choices: dict[Any, TokenScores] = {}  # metrics that score alike share a pass and their sums

    def scores_for(self, metric: TokenMetric, over: str | None) -> TokenScores:
        """The scores that the metric is computed from: the choices, the tokens, or one row for the document.

        The tokens are used if the model gives them and the metric takes them. A metric per byte uses them only if their
        bytes add up to the text's; its bits are then those of every other host. Otherwise, and for a metric per word,
        the document is one row with the length of its text.
        """
        if over == "choices":
            return self._over_choices(metric)
        if self.tokens is None or "token" not in metric.row_kinds:
            return self.row
        return self.tokens if self._cover_the_text(self.tokens, metric.requires & _LENGTHS) else self.row

    @property
    def loglikelihood(self) -> float:
        """ln p of the text that was scored."""
        return float(self._answer if isinstance(self._answer, float) else self._answer[0])

    def scores_of_tokens(self, metric: TokenMetric) -> TokenScores:
        """The scores of the text's tokens, for what can't be computed from the whole.

        Raises:
            MissingScoreError: the model gave one loglikelihood for the whole.
        """
        found = self.row if self.tokens is None else self.tokens
        found.require((), row_kinds=frozenset({"token"}), metric=f"{metric.name} by group")
        return found

    def _over_choices(self, metric: TokenMetric) -> TokenScores:
        options = metric.ignore_index, metric.scoring_key, *metric.extra_scores()
        if options not in self._choices:
            self._choices[options] = choice_scores(metric, self.loglikelihoods, self.gold)
        return self._choices[options]

    @cached_property
    def row(self) -> TokenScores:
        """The document as one row, with the bytes and words of its text."""
        is_whole_text, text = isinstance(self._answer, float), self._answer.text
        # The delimiter of a continuation is white space, which would add an empty word.
        num_words = self._count_words(text if is_whole_text else text.strip())
        return from_loglikelihoods([self.loglikelihood], num_bytes=[self._count_bytes(text)], num_words=[num_words])

    def _cover_the_text(self, tokens: TokenScores, lengths: frozenset[str]) -> bool:
        found = [(getattr(tokens, name), getattr(self.row, name)) for name in lengths]
        return all(length is not None and _adds_up(length[tokens.counted], total) for length, total in found)


def _adds_up(lengths: Tensor, total: Tensor) -> bool:
    """True if the lengths add up to the text's and none is 0: a token without length would take its nats out of the sum."""
    return bool((lengths > 0).all()) and int(lengths.sum()) == int(total)
