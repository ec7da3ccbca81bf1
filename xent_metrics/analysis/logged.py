"""The tokens, the context and the choices of a document that lm-eval logged.

Tokens are logged by models run with `log_tokens=true`, as JSON in the strings of lm-eval's `resps`. With `log_tokens=parquet`
they are in columns beside it (parquet_samples.py), and `restored` puts them back.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

__all__ = [
    "HOW_TO_LOG_TOKENS",
    "Alternatives",
    "Choice",
    "TokenList",
    "Tokens",
    "choices_in",
    "context_in",
    "gold_in",
    "parse_json",
    "restored",
    "text_in",
    "tokens_in",
]

#: What to do about a run without tokens.
HOW_TO_LOG_TOKENS = (
    "evaluate with `xent lm-eval run`, --model xent-hf or xent-torch, --model_args …,log_tokens=true and --log_samples"
)
_NUMBER = (int, float)  # a tuple, because `int | float` is built anew for each of a million tokens


class Alternatives(Sequence[list[tuple[str, float]]]):
    """The likeliest texts in each token's place with their probabilities, made when they are asked for.

    Args:
        sizes: how many each token has.
        columns: gives the texts of some of the tokens, and their probabilities, laid end to end.

    >>> list(Alternatives.listed([[("a", 0.5), ("b", 0.25)], [], [("c", 0.75)]]))
    [[('a', 0.5), ('b', 0.25)], [], [('c', 0.75)]]
    """

    def __init__(self, sizes: Sequence[int], columns: Callable[[range], tuple[Sequence[str], Sequence[float]]]) -> None:
        self.sizes, self.columns = sizes, columns

    @classmethod
    def listed(cls, tokens: Sequence[Sequence[tuple[str, float]]]) -> Alternatives:
        """Those in a list."""

        def columns(places: range) -> tuple[list[str], list[float]]:
            pairs = [pair for place in places for pair in tokens[place]]
            return [text for text, _ in pairs], [probability for _, probability in pairs]

        return cls([len(each) for each in tokens], columns)

    def __len__(self) -> int:
        return len(self.sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alternatives) and list(self) == list(other)

    @overload
    def __getitem__(self, place: int) -> list[tuple[str, float]]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[tuple[str, float]]]: ...
    def __getitem__(self, place: int | slice) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        own = range(len(self))[place]
        return list(zip(*self.columns(range(own, own + 1)), strict=True))


@dataclass(frozen=True)
class Tokens:
    """The tokens of a document by column: text, nll in nats, id, and the likeliest alternatives with their probabilities.

    `alternatives` is empty if they were not logged.
    """

    texts: Sequence[str]
    nll: Sequence[float]
    ids: Sequence[int]
    alternatives: Alternatives

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def text(self) -> str:
        """The document's text: the texts of its tokens, joined."""
        return "".join(self.texts)

    @property
    def mean_nll(self) -> float:
        """The mean in nats per token; nan without tokens."""
        return math.fsum(self.nll) / len(self) if len(self) else math.nan


class TokenList(Sequence[Mapping[str, Any]]):
    """Logged tokens by column, which read like JSON's list of objects.

    >>> list(TokenList({"text": ["a", "b"], "id": [1, 2]}))
    [{'text': 'a', 'id': 1}, {'text': 'b', 'id': 2}]
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return min(map(len, self.columns.values()), default=0)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, row, strict=True))

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> TokenList: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | TokenList:
        found = {name: column[place] for name, column in self.columns.items()}
        return TokenList(found) if isinstance(place, slice) else found


@dataclass(frozen=True)
class Choice:
    """One answer to a multiple-choice question, with its loglikelihood in nats."""

    text: str
    loglikelihood: float
    is_gold: bool


def parse_json(text: str | bytes) -> Any:
    """What the JSON says, with whole numbers beyond 2^53 as floats: infinite ones if need be, not ints of any length.

    Raises:
        ValueError: it isn't JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_int=_bounded_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 16 or abs(float(digits)) < 2**53 else float(digits)


def restored(raw: Mapping[str, Any], results: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    """A logged document, with results that list their tokens in place of plain loglikelihoods.

    Args:
        raw: the document.
        results: the lists by place, which is counted through the strings in `resps`.

    >>> restored({"resps": [[["-1.5", "False"]]]}, {0: {"tokens": []}})
    {'resps': [[[{'loglikelihood': -1.5, 'tokens': []}, 'False']]]}
    """
    places = itertools.count()

    def put(part: Any) -> Any:
        if isinstance(part, list):
            return [put(each) for each in part]
        found = results.get(next(places))
        try:
            return part if found is None else {"loglikelihood": float(part), **found}
        except (TypeError, ValueError):  # another document's
            return part

    return {**raw, "resps": put(raw.get("resps"))} if results else raw


def tokens_in(raw: Mapping[str, Any]) -> Tokens | None:
    """The document's tokens (the gold continuation's for a question); None if they were not logged."""
    responses = list(_logged(raw.get("resps")))
    if not responses:
        return None
    tokens = responses[min(gold_in(raw), len(responses) - 1)]
    if isinstance(tokens, TokenList):
        columns = tokens.columns
        alternatives = columns.get("alternatives")
        if not isinstance(alternatives, Alternatives):
            alternatives = Alternatives.listed([])
        return Tokens(columns["text"], columns["nll"], columns["id"], alternatives)
    try:
        return Tokens(
            [str(token["text"]) for token in tokens],
            [_number(token["nll"]) for token in tokens],
            [_id(token.get("id")) for token in tokens],
            Alternatives.listed([_alternatives(token) for token in tokens if "alternatives" in token]),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:  # another schema
        if any(isinstance(token, Mapping) for token in tokens):  # else a generated text that looks like tokens
            warnings.warn(f"the logged tokens of a document aren't read: {error!r:.120}", stacklevel=2)
        return None


def _id(value: Any) -> int:
    found = int(_number(value or 0))
    if not 0 <= found < 2**31:
        raise ValueError(f"expected a token's id; got {value!r:.80}")
    return found


def _number(value: Any) -> float:
    """A logged number; nan stays, as the nll of logits that are nan, and -inf is none.

    Raises:
        ValueError: it is not a number that a model logs.
    """
    if not isinstance(value, _NUMBER) or value == -math.inf:
        raise ValueError(f"expected a number; got {value!r:.80}")
    return float(value)


def _alternatives(token: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for text, probability in token["alternatives"]:
        if not isinstance(probability, _NUMBER) or not 0 <= probability <= 1:
            raise ValueError(f"expected a probability in [0, 1]; got {probability!r:.80}")
        found.append((str(text), float(probability)))
    return found


def _logged(responses: Any) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The tokens of every result in lm-eval's nested lists of strings."""
    if isinstance(responses, list):
        for part in responses:
            yield from _logged(part)
    elif isinstance(found := _parsed(responses), dict) and isinstance(found.get("tokens"), list | TokenList):
        yield found["tokens"]


def _parsed(response: Any) -> Any:
    try:
        return parse_json(response) if isinstance(response, str) else response
    except ValueError:
        return None


def _arguments(raw: Mapping[str, Any]) -> list[list[Any]]:
    """The arguments of each request."""
    arguments = raw.get("arguments")
    if not isinstance(arguments, dict):
        return []
    return [list(given.values()) for given in arguments.values() if isinstance(given, dict)]


def _requests(raw: Mapping[str, Any]) -> list[list[str]]:
    """The strings of each request that was scored; a generation has options in place of a text."""
    found = [given for given in _arguments(raw) if not any(isinstance(value, dict) for value in given[1:2])]
    return [[str(value) for value in given] for given in found]


def gold_in(raw: Mapping[str, Any]) -> int:
    """The index of the gold choice, which lm-eval logs as a string; 0 without choices."""
    requests, target = _requests(raw), str(raw.get("target", ""))
    if target.isdecimal() and int(target) < len(requests):
        return int(target)
    return next((i for i, request in enumerate(requests) if request[-1:] and request[-1].strip() == target.strip()), 0)


def context_in(raw: Mapping[str, Any]) -> str:
    """The context before the scored text; empty in a rolling task."""
    requests = _arguments(raw)
    return str(requests[0][0]) if requests and len(requests[0]) > 1 else ""


def text_in(raw: Mapping[str, Any]) -> str:
    """The scored text; the whole document if no request was logged."""
    requests = _requests(raw)
    if not requests or not requests[0]:
        return str(raw.get("doc", ""))
    return requests[gold_in(raw)][-1]


def choices_in(raw: Mapping[str, Any]) -> list[Choice]:
    """The answers to a multiple-choice question; empty for other tasks."""
    requests, responses = _requests(raw), raw.get("resps")
    if len(requests) < 2 or not isinstance(responses, list) or len(responses) != len(requests):
        return []
    gold = gold_in(raw)
    return [
        Choice(request[-1], _loglikelihood(response), index == gold)
        for index, (request, response) in enumerate(zip(requests, responses, strict=True))
    ]


def _loglikelihood(response: Any) -> float:
    while isinstance(response, list) and response:
        response = response[0]
    found = _parsed(response)
    found = found.get("loglikelihood") if isinstance(found, dict) else found
    return float(found) if isinstance(found, int | float) else math.nan
