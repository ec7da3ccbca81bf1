"""Results whose tokens stand in lm-eval's samples: `log_tokens=true` with `--log_samples`.

lm-eval writes a result's numbers into the samples by `str`. A `LoggedFloat` is the number in every computation, and as
a string the JSON of ``{"loglikelihood": …, "tokens": [{"text", "id", "nll", "num_bytes"}, …]}``:

    json.loads(sample["resps"][0][0][0])["tokens"]      # the first choice's; rolling: sample["resps"][0][0]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...scores import TokenScores
from .results import ScoredLoglikelihood, ScoredRolling, total_loglikelihood

__all__ = ["LoggedFloat", "LoggedLoglikelihood", "LoggedRolling", "token_texts"]

_SEEN = 6  # ids decoded with each token: enough for any character to be whole and for the space before a word


class LoggedFloat(float):
    """A loglikelihood whose string lists its tokens."""

    scores: TokenScores
    texts: list[str]

    def __new__(cls, scores: TokenScores, texts: list[str]) -> LoggedFloat:
        result = float.__new__(cls, total_loglikelihood(scores))
        result.scores, result.texts = scores, texts
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.scores, self.texts)

    def __str__(self) -> str:
        scores = self.scores.flatten()
        columns: dict[str, list[Any]] = {"text": self.texts}
        for name, values in (("id", scores.target), ("nll", scores.nll), ("num_bytes", scores.num_bytes)):
            if values is not None:
                columns[name] = values.tolist()
        tokens = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return json.dumps({"loglikelihood": float(self), "tokens": tokens}, ensure_ascii=False)


class LoggedLoglikelihood(ScoredLoglikelihood):
    """``(loglikelihood, is_greedy)`` whose first number lists its tokens."""

    def __new__(cls, scores: TokenScores, texts: list[str]) -> LoggedLoglikelihood:
        assert scores.correct is not None
        first = LoggedFloat(scores, texts)
        result = tuple.__new__(cls, (first, bool(scores.correct.all())))
        result.scores = scores
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        first = self[0]
        assert isinstance(first, LoggedFloat)
        return (self.scores, first.texts)


class LoggedRolling(LoggedFloat, ScoredRolling):
    """The loglikelihood of a whole text that lists its tokens."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each id adds to the decoded text; a character of several tokens stands with the last of them.

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return bytes(ids).decode(errors="replace")
    >>> token_texts(Letters(), list("né".encode()))
    ['n', '', 'é']
    """
    texts: list[str] = []
    done = 0  # ids whose text is out
    for end in range(1, len(ids) + 1):
        start = max(0, done - _SEEN)
        before = tokenizer.decode(ids[start:done])
        text = tokenizer.decode(ids[start:end])
        whole = not text.endswith("\ufffd") or end == len(ids) or end - done > _SEEN
        texts.append(text[len(before) :] if whole else "")
        done = end if whole else done
    return texts
