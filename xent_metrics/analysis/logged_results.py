"""The results of a document's requests as lm-eval logged them, and the token scores that they were made of.

JSON carries every bit of a float: the scores are those of the run, in its dtype, so that a metric of them has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xent_metrics.analysis.logged import TokenList, parse_json
from xent_metrics.errors import MissingScoreError
from xent_metrics.scoring.scores import TokenScores

__all__ = ["LOGGED_SCORES", "LoggedResult", "results_in"]

#: The scores that models log of each token, besides its id; `invalid` is logged where it is true of one.
LOGGED_SCORES = ("nll", "confidence", "correct", "num_bytes")
_DTYPES = {
    "nll": None,  # the run's own
    "confidence": None,
    "correct": torch.bool,
    "num_bytes": torch.int64,
    "invalid": torch.bool,
}
_FLOATS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class LoggedResult:
    """The result of one request for a loglikelihood.

    Attributes:
        arguments: of the request: the text, or the context and the continuation.
        loglikelihood: in nats.
        logged: the loglikelihood with its tokens, as `log_tokens=true` writes them; None without.
    """

    arguments: tuple[str, ...]
    loglikelihood: float
    logged: Mapping[str, Any] | None

    def scores(self) -> TokenScores:
        """The scores of the tokens, ``(T,)``.

        Raises:
            MissingScoreError: the tokens were logged without their dtype, or without scores.
            ValueError: they are damaged: not numbers, or not those of the loglikelihood.
        """
        assert self.logged is not None
        floats = _FLOATS.get(str(self.logged.get("dtype")))
        if floats is None:
            raise MissingScoreError(
                f"the tokens are logged without `dtype` ({', '.join(_FLOATS)}), `confidence` and `correct`, as an earlier "
                "version did; evaluate again"
            )
        found = _columns(self.logged["tokens"], floats)
        if not _same(-math.fsum(found["nll"].tolist()) + 0.0, self.loglikelihood):
            raise ValueError(f"its tokens don't add up to its loglikelihood {self.loglikelihood!r}")
        known: dict[str, Any] = {**found, "vocab_size": self.logged.get("vocab_size")}
        return TokenScores(**known, counted=torch.ones_like(found["nll"], dtype=torch.bool))


def _columns(tokens: Any, floats: torch.dtype) -> dict[str, Tensor]:
    try:
        columns = tokens.columns if isinstance(tokens, TokenList) else _by_column(tokens)
        found = {
            name: torch.tensor(values, dtype=_DTYPES[name] or floats)
            for name, values in columns.items()
            if name in _DTYPES
        }
        found["target"] = torch.tensor(columns["id"], dtype=torch.int64)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"its tokens can't be read: {type(error).__name__}: {error}") from error
    found.setdefault("invalid", torch.zeros(len(tokens), dtype=torch.bool))
    return found


def _by_column(tokens: Any) -> dict[str, list[Any]]:
    named = [name for name in _DTYPES if name == "nll" or not tokens or any(name in token for token in tokens)]
    return {name: [token[name] for token in tokens] for name in (*named, "id")}


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def results_in(raw: Mapping[str, Any]) -> list[LoggedResult]:
    """The results of a document's requests for loglikelihoods, in their order; those of generations are left out.

    Raises:
        ValueError: they can't be read.

    >>> raw = {"arguments": {"gen_args_0": {"arg_0": "Why?", "arg_1": " because"}}, "resps": [[["-1.5", "False"]]]}
    >>> results_in(raw)
    [LoggedResult(arguments=('Why?', ' because'), loglikelihood=-1.5, logged=None)]
    """
    try:
        pairs = list(zip(raw["arguments"].values(), raw["resps"], strict=True))
        asked = [(list(given.values()), responses) for given, responses in pairs]
        return [
            _result(tuple(arguments), responses[0])
            for arguments, responses in asked
            if not any(isinstance(argument, dict) for argument in arguments)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its results can't be read: {type(error).__name__}: {error}") from error


def _result(arguments: tuple[str, ...], response: Any) -> LoggedResult:
    found = response[0] if isinstance(response, list) else response
    if isinstance(found, str) and found.startswith("{"):
        found = parse_json(found)
    logged = found if isinstance(found, dict) else None
    return LoggedResult(arguments, float(found if logged is None else logged["loglikelihood"]), logged)
