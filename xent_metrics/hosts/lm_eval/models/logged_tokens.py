"""Make the results of a model, and list their tokens in lm-eval's samples: `log_tokens=true` with `--log_samples`.

lm-eval writes the numbers of a result into the samples with `str`. A `LoggedFloat` is a plain number in every computation,
and its string is the JSON of

    {"loglikelihood": …, "dtype": "float32", "vocab_size": …, "tokens": [
        {"text", "id", "nll", "confidence", "correct", "num_bytes", "alternatives"}, …]}

    json.loads(sample["resps"][0][0][0])["tokens"]      # the first choice's; rolling: sample["resps"][0][0]

Numbers have all their digits: as `dtype` they are the scores, bit for bit, from which `xent rescore` computes other metrics.
`alternatives` lists the likeliest ids at that position as ``[text, probability]``, likeliest first. They are for reading: their
probabilities have three decimals. With `log_tokens=parquet` the same goes into columns of a Parquet file, in place of the JSON
lines (xent_metrics/analysis/parquet_samples.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xent_metrics.analysis.logged_results import LOGGED_SCORES
from xent_metrics.analysis.parquet_samples import pyarrow
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling, total_loglikelihood
from xent_metrics.hosts.lm_eval.upstream import IS_0_4
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["LoggedFloat", "LoggedLoglikelihood", "LoggedRolling", "Results", "token_texts"]

_SEEN = 6  # ids decoded before each token: enough to complete any character, and to keep the space before a word
_LIKELIEST = "likeliest"
_DECIMALS = 3  # of alternatives' probabilities: what a report and `xent view` show of them
_PARQUET = "parquet"
_MADE_BY = "made by"  # the key in a cache of the model and the options that its results come from

#: A token as it is written into the samples.
Token = Mapping[str, Any]


class Results:
    """Makes the results of a model: plain ones, or with a tokenizer ones that list their tokens.

    Args:
        tokenizer: decodes the tokens to list.
        num_alternatives: how many of the likeliest ids to list with each token.
        in_parquet: list them in columns of a Parquet file, in place of JSON lines.
    """

    def __init__(self, tokenizer: Any = None, num_alternatives: int = 0, *, in_parquet: bool = False) -> None:
        if type(num_alternatives) is not int or num_alternatives < 0:
            raise InvalidInputError(f"log_alternatives is a whole number, 0 for none; got {num_alternatives!r}")
        self.tokenizer = tokenizer
        self.num_alternatives = num_alternatives if tokenizer is not None else 0
        self.in_parquet = in_parquet
        self._text_of = cache(self._text_inside)

    @classmethod
    def of(cls, tokenizer: Any, *, log_tokens: Any, log_alternatives: Any) -> Results:
        """Results with the options of a model, `log_tokens` and `log_alternatives`.

        Raises:
            InvalidInputError: other values than these options have.
            MissingExtraError: pyarrow, which Parquet files need, is not installed.
        """
        if log_tokens == _PARQUET:
            pyarrow()
        elif not isinstance(log_tokens, bool):
            raise InvalidInputError(f"log_tokens is true, false or {_PARQUET}; got {log_tokens!r}")
        return cls(tokenizer if log_tokens else None, log_alternatives, in_parquet=log_tokens == _PARQUET)

    @property
    def extra_scores(self) -> Mapping[str, ExtraScore]:
        """The extra scores that the lists need: the likeliest ids and their ln p."""
        if not self.num_alternatives:
            return {}
        return {_LIKELIEST: ExtraScore(self._likeliest, (2, self.num_alternatives))}

    def _likeliest(self, log_prob: Tensor, index: Tensor) -> Tensor:
        """``(rows, 2, K)``: ln p and ids, padded with id −1. Ids are floats, exact in float32 up to 2^24."""
        found = log_prob.topk(min(self.num_alternatives, log_prob.shape[-1]))
        missing = self.num_alternatives - found.values.shape[-1]
        values = torch.nn.functional.pad(found.values, (0, missing), value=-torch.inf)
        ids = torch.nn.functional.pad(found.indices, (0, missing), value=-1)
        return torch.stack([values, ids.to(values.dtype)], dim=1)

    def check_cache(self, cached: Any, made_by: Mapping[str, Any]) -> None:
        """Refuse a cache with results of another model or other options, which lm-eval can't tell from these.

        A cache of results without tokens is refused, too, if tokens are to be listed.

        Args:
            cached: lm-eval's SqliteDict, or None.
            made_by: the model and the options, by name.
        """
        if cached is None:
            return
        refused = f"the cache {cached.filename} holds results {{}}; give --use_cache another name"
        known = cached.get(_MADE_BY)
        if known is None and len(cached):
            raise InvalidInputError(refused.format("of another model: it doesn't say which"))
        other = [name for name in {**(known or {}), **made_by} if known and known.get(name) != made_by.get(name)]
        if other:
            theirs, ours = (", ".join(f"{name}={found.get(name)}" for name in other) for found in (known, made_by))
            raise InvalidInputError(refused.format(f"of {theirs}, and this is {ours}"))
        if self.tokenizer is not None and any(_lacks_tokens(cached[key]) for key in cached if key != _MADE_BY):
            raise InvalidInputError(refused.format("without tokens, which log_tokens=true asks for"))
        cached[_MADE_BY] = dict(made_by)

    def loglikelihood(self, scores: TokenScores) -> ScoredLoglikelihood:
        """(ln p, whether greedy decoding gives it) of a continuation."""
        if self.tokenizer is None:
            return ScoredLoglikelihood(scores)
        return LoggedLoglikelihood(_without_likeliest(scores), self._tokens(scores), self.in_parquet)

    def rolling(self, scores: TokenScores) -> ScoredRolling | ScoredLoglikelihood:
        """The loglikelihood ln p of a whole text, as lm-eval expects it."""
        if not IS_0_4:
            return self.loglikelihood(scores)
        if self.tokenizer is None:
            return ScoredRolling(scores)
        return LoggedRolling(_without_likeliest(scores), self._tokens(scores), self.in_parquet)

    def _tokens(self, scores: TokenScores) -> list[Token]:
        scores = scores.flatten()
        assert scores.target is not None
        ids = scores.target.tolist()
        columns: dict[str, list[Any]] = {"text": token_texts(self.tokenizer, ids), "id": ids}
        fields = scores.fields()
        columns |= {name: fields[name].tolist() for name in LOGGED_SCORES if name in fields}
        if scores.invalid is not None and bool(scores.invalid.any()):
            columns["invalid"] = scores.invalid.tolist()
        if _LIKELIEST in scores.extra_scores:
            columns["alternatives"] = [self._alternatives(row) for row in scores.extra_scores[_LIKELIEST]]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _alternatives(self, row: Tensor) -> list[tuple[str, float]]:
        pairs = zip(row[1].long().tolist(), row[0].exp().tolist(), strict=True)
        return [(self._text_of(i), round(probability, _DECIMALS)) for i, probability in pairs if i >= 0]

    def _text_inside(self, i: int) -> str:
        """The text of an id inside a text: with its leading space, which many tokenizers drop at the beginning."""
        return str(self.tokenizer.decode([i, i])[len(self.tokenizer.decode([i])) :])


def _lacks_tokens(result: Any) -> bool:
    first = result[0] if isinstance(result, tuple | list) and result else result
    return isinstance(first, float) and not isinstance(first, LoggedFloat)


def _without_likeliest(scores: TokenScores) -> TokenScores:
    """The scores without the likeliest ids, which are listed by now; the metrics' own extra scores stay."""
    return dataclasses.replace(
        scores, extra_scores={n: value for n, value in scores.extra_scores.items() if n != _LIKELIEST}
    )


class LoggedFloat(float):
    """A loglikelihood whose string lists its tokens."""

    scores: TokenScores
    tokens: Sequence[Token]
    in_parquet: bool

    def __new__(cls, scores: TokenScores, tokens: Sequence[Token], in_parquet: bool = False) -> LoggedFloat:
        result = float.__new__(cls, total_loglikelihood(scores))
        result.scores, result.tokens, result.in_parquet = scores, tokens, in_parquet
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.scores, self.tokens, self.in_parquet)

    def listed(self) -> dict[str, Any]:
        """The loglikelihood and its tokens, as they are logged."""
        found = {"loglikelihood": float(self), "dtype": str(self.scores.nll.dtype).removeprefix("torch.")}
        if self.scores.vocab_size is not None:
            found["vocab_size"] = self.scores.vocab_size
        return found | {"tokens": self.tokens}

    def __str__(self) -> str:
        return json.dumps(self.listed(), ensure_ascii=False)


class LoggedLoglikelihood(ScoredLoglikelihood):
    """``(loglikelihood, is_greedy)`` whose first number lists its tokens."""

    def __new__(cls, scores: TokenScores, tokens: Sequence[Token], in_parquet: bool = False) -> LoggedLoglikelihood:
        assert scores.correct is not None
        result = tuple.__new__(cls, (LoggedFloat(scores, tokens, in_parquet), bool(scores.correct.all())))
        result.scores = scores
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        first = self[0]
        assert isinstance(first, LoggedFloat)
        return (self.scores, first.tokens, first.in_parquet)


class LoggedRolling(LoggedFloat, ScoredRolling):
    """The loglikelihood of a whole text that lists its tokens."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each id adds; a character of several tokens is listed with the last of them.

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return bytes(ids).decode(errors="replace")
    >>> token_texts(Letters(), list("né".encode()))
    ['n', '', 'é']
    """
    texts: list[str] = []
    done = 0  # ids whose text is listed
    for end in range(1, len(ids) + 1):
        start = max(0, done - _SEEN)
        before = tokenizer.decode(ids[start:done])
        text = tokenizer.decode(ids[start:end])
        whole = not text.endswith("\ufffd") or end == len(ids) or end - done > _SEEN
        texts.append(text[len(before) :] if whole else "")
        done = end if whole else done
    return texts
