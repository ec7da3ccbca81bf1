"""One document: from the model's results to scores, from scores to a metric's value with its exact sums, and their merge.

lm-eval hands `process_results` bare results. `attach_text` first puts beside each the text that was asked for, so that
bytes and words are counted over the span that the nats are of: a rolling task's whole text; a continuation with its
delimiter and with the white space that its context ends in, which lm-eval's models score as part of the continuation.

Who syncs: lm-eval, which gathers every document's value to rank 0 and calls the two `total_…` functions there alone.
They make no collective; they add the packed integers up, so that the number of processes can't matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import CapacityError, MissingScoreError
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import TokenScores, from_loglikelihoods
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.standard_error import standard_error

__all__ = [
    "CHOICE",
    "DOCUMENT",
    "DocumentScores",
    "DocumentSums",
    "DocumentValue",
    "attach_text",
    "can_score",
    "choice_scores",
    "requested_text",
    "require_scores",
    "tokens_for",
    "total_standard_error",
    "total_value",
]  # fmt: skip

_LENGTHS = {"num_bytes", "num_words"}

# What a host can give, as scores without rows: a metric that takes these takes the real ones.
DOCUMENT = from_loglikelihoods([], num_bytes=[], num_words=[])
CHOICE = from_loglikelihoods([], row_kind="choice")
TOKEN = score_tokens(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), token_bytes=torch.ones(1, dtype=torch.long))


def require_scores(scores: TokenScores, metric: TokenMetric) -> None:
    """Raise `MissingScoreError` unless the scores have all that the metric needs."""
    scores.require({*metric.requires, *metric.extra_scores()}, row_kinds=metric.row_kinds, metric=metric.name)


def tokens_for(metric: TokenMetric) -> TokenScores:
    """What a host that scores tokens can give the metric, as scores without rows: extra scores by being asked for them."""
    return dataclasses.replace(
        TOKEN, extra_scores={n: torch.zeros(0, *score.shape) for n, score in metric.extra_scores().items()}
    )


def can_score(scores: TokenScores, metric: TokenMetric) -> bool:
    """Whether the scores have all that the metric needs."""
    try:
        require_scores(scores, metric)
    except MissingScoreError:
        return False
    return True


class DocumentValue(float):
    """A metric's value of one document with its packed exact sums, int64 ``(rows, 8)``: to JSON a plain float."""

    sums: Tensor

    def __new__(cls, value: float, sums: Tensor) -> DocumentValue:
        self = super().__new__(cls, value)
        self.sums = sums
        return self

    @classmethod
    def of(cls, metric: TokenMetric, scores: TokenScores) -> DocumentValue:
        """The metric of one document's scores; the metric's own state is not touched."""
        sums = metric.exact_sums(scores).cpu()
        return cls(float(metric.value_of(sums)), sums)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (float(self), self.sums)


class DocumentSums(dict[str, Any]):
    """The same sums under ``<name>_stderr``, from which the standard error is taken: to JSON, floats by the sum's name.

    In logged samples they are what a later comparison of two runs needs.
    """

    sums: Tensor

    def __new__(cls, named: dict[str, Any], sums: Tensor) -> DocumentSums:
        self = super().__new__(cls)
        self.sums = sums
        return self

    def __init__(self, named: dict[str, Any], sums: Tensor) -> None:
        super().__init__(named)

    @classmethod
    def of(cls, metric: TokenMetric, sums: Tensor) -> DocumentSums:
        """The packed sums with their names."""
        named = metric.unpack(exact_sum.to_float(sums))
        return cls({name: value.tolist() for name, value in named.items()}, sums)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.sums)


def total_value(metric: TokenMetric, documents: Sequence[DocumentValue]) -> float:
    """The metric over all documents (lm-eval's aggregation of ``<name>``); nan for none."""
    if not documents:
        return float("nan")
    total = exact_sum.merge(torch.stack([document.sums for document in documents]))
    if bool(exact_sum.overflowed(total)):
        raise CapacityError(f"{metric.name}: a sum left ±2^78, the range in which it is exact")
    return float(metric.value_of(total))


def total_standard_error(metric: TokenMetric, documents: Sequence[DocumentSums]) -> float:
    """Its standard error over documents (lm-eval's aggregation of ``<name>_stderr``); nan for fewer than two."""
    if not documents:
        return float("nan")
    return standard_error(metric, torch.stack([document.sums for document in documents]))


class _Rolling(float):
    """A whole text's loglikelihood beside the text and its tokens' scores; pickles as the float."""

    text: str
    scores: TokenScores | None

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class _Continuation(tuple[Any, ...]):
    """``(loglikelihood, is_greedy)`` beside the text and its tokens' scores; pickles as the tuple."""

    text: str
    scores: TokenScores | None

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def attach_text(result: Any, text: str) -> _Rolling | _Continuation:
    """A model's result beside the text that it is of: to lm-eval, its filters apart, the plain value still."""
    answer = _Continuation(result) if isinstance(result, tuple | list) else _Rolling(result)
    answer.text, answer.scores = text, getattr(result, "scores", None)
    return answer


def requested_text(request_type: str, arguments: Sequence[Any]) -> str:
    """The span whose loglikelihood a request asks for.

    >>> requested_text("loglikelihood", ("Question: why?\\nAnswer: ", "because"))
    ' because'
    """
    if request_type == "loglikelihood_rolling":
        return str(arguments[0])
    context, continuation = arguments[:2]
    return str(context[len(context.rstrip()) :] + continuation)


def choice_scores(metric: TokenMetric, loglikelihoods: Sequence[float], gold: int) -> TokenScores:
    """One row: the distribution over the choices, softmax of their loglikelihoods in float64, with `gold` as the target.

    It is scored by the metric's own options, as logits would be.

    >>> from xent_metrics import get_metric
    >>> choice_scores(get_metric("cross_entropy"), [-1.0, -1.0], gold=1).nll          # ln 2
    tensor([0.6931], dtype=torch.float64)
    """
    scores = metric.score(torch.tensor([loglikelihoods], dtype=torch.float64), torch.tensor([gold]))
    return dataclasses.replace(scores, row_kind="choice")


class DocumentScores:
    """The scores of one document.

    Args:
        answer: the whole text's or the (gold) continuation's, from `attach_text`.
        count_bytes, count_words: the task's own.
        loglikelihoods, gold: of all choices, in multiple choice.
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
        self._choices: dict[Any, TokenScores] = {}  # metrics that score alike share their sums

    def scores_for(self, metric: TokenMetric, over: str | None) -> TokenScores:
        """What the metric is taken of: the choices, or the tokens where the model gives them and they will do, or one row.

        A metric over bytes takes the tokens only if theirs add up to the text's: the same bits then as in every other
        host. Where they don't, and over words, the document is one row with its text's own count.
        """
        if over == "choices":
            return self._over_choices(metric)
        if self.tokens is None or "token" not in metric.row_kinds or not self._tokens_have_lengths(metric):
            return self.row
        return self.tokens

    def _over_choices(self, metric: TokenMetric) -> TokenScores:
        options = metric.ignore_index, metric.scoring_key, *metric.extra_scores()
        if options not in self._choices:
            self._choices[options] = choice_scores(metric, self.loglikelihoods, self.gold)
        return self._choices[options]

    @cached_property
    def row(self) -> TokenScores:
        """The document as one row, with the bytes and words of its text."""
        loglikelihood = self._answer if isinstance(self._answer, float) else self._answer[0]
        text = self._answer.text
        num_words = self._count_words(text) if isinstance(self._answer, float) else self._count_words(text.strip())
        return from_loglikelihoods([float(loglikelihood)], num_bytes=[self._count_bytes(text)], num_words=[num_words])

    def _tokens_have_lengths(self, metric: TokenMetric) -> bool:
        for name in metric.requires & _LENGTHS:
            lengths = getattr(self.tokens, name)
            if lengths is None or not _adds_up(self.tokens, lengths, getattr(self.row, name)):
                return False
        return True


def _adds_up(tokens: TokenScores | None, lengths: Tensor, total: Tensor) -> bool:
    """Whether every token that counts has a length, so that no nats are left out, and all together the text's."""
    assert tokens is not None
    counted = lengths[tokens.counted]
    return bool((counted > 0).all()) and int(counted.sum()) == int(total)
