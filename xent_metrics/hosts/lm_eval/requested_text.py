"""Puts the requested text and the filter beside each of a model's results.

lm-eval gives `process_results` bare results, and doesn't say under which filter.

Bytes and words are then counted over the text that was scored. For a rolling task that is the whole text. For a
continuation it includes the delimiter, and the white space at the end of the context, which lm-eval's models score as
part of the continuation.

Who syncs: nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xent_metrics.scoring.scores import TokenScores

__all__ = ["attach_text", "requested_text"]


class _Rolling(float):
    """A text's loglikelihood, with the text and its token scores. Pickled as the plain float."""

    text: str
    filter_name: str
    scores: TokenScores | None

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class _Continuation(tuple[Any, ...]):
    """``(loglikelihood, is_greedy)``, with the continuation's text and token scores. Pickled as the plain tuple."""

    text: str
    filter_name: str
    scores: TokenScores | None

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def attach_text(result: Any, text: str, filter_name: str = "none") -> _Rolling | _Continuation:
    """A model's result with the text that was scored, and the filter that it is under.

    lm-eval's own metrics still see a float or a tuple.

    >>> answer = attach_text((-1.5, True), " because")
    >>> answer, answer.text, answer.scores
    ((-1.5, True), ' because', None)
    """
    answer = _Continuation(result) if isinstance(result, tuple | list) else _Rolling(result)
    answer.text, answer.filter_name, answer.scores = text, filter_name, getattr(result, "scores", None)
    return answer


def requested_text(request_type: str, arguments: Sequence[Any]) -> str:
    r"""The text that a request asks the loglikelihood of.

    >>> requested_text("loglikelihood", ("Question: why?\nAnswer: ", "because"))
    ' because'
    """
    if request_type == "loglikelihood_rolling":
        return str(arguments[0])
    context, continuation = arguments[:2]
    return str(context[len(context.rstrip()) :] + continuation)
