"""Read the answers of `/v1/completions`: a choice's tokens and log-probabilities, aligned with the ids that were asked for.

Servers differ. The first token's entry is null, or a number that means nothing, or it is missing, or the token is left out;
the token generated after the prompt is listed or not. Texts are compared with ours (token_texts.py), so a server that made
other tokens of a prompt is noticed, and no answer is read one place off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xent_metrics.errors import EngineError
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs
from xent_metrics.hosts.lm_eval.engines.token_texts import TokenTexts

__all__ = ["Listed", "aligned", "choices_of", "first_listed", "listed"]

_SHOWN = 12


class Listed(NamedTuple):
    """The `logprobs` of a choice: texts, own and largest log-probabilities of its tokens, of equal length."""

    texts: list[str]
    own: list[float | None]
    largest: list[float | None]


def choices_of(answer: Any, number: int) -> list[Mapping[str, Any]]:
    """The choices of an answer to `number` prompts, in their order.

    >>> choices_of({"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]}, 2)
    [{'index': 0, 'text': 'a'}, {'index': 1, 'text': 'b'}]
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != number:
        got = f"{len(choices)}" if isinstance(choices, list) else repr(answer)[:200]
        raise EngineError(f"expected {number} choices, one for each prompt; got {got}. Try batch_size=1")
    return sorted(choices, key=lambda choice: choice.get("index", 0))


def listed(choice: Mapping[str, Any]) -> Listed:
    """The tokens and log-probabilities of a choice.

    Raises:
        EngineError: the server gives none, or not in the form of OpenAI's `/v1/completions`.
    """
    logprobs = choice.get("logprobs")
    if not logprobs:
        raise EngineError("the server gives no log-probabilities (`logprobs` is empty), so it can't score")
    names = ("tokens", "token_logprobs", "top_logprobs")
    missing = [name for name in names if not isinstance(logprobs.get(name), list)]
    if missing:
        raise EngineError(
            f"the server's `logprobs` have no list {' and no list '.join(missing)}, so it can't score; got "
            f"{sorted(logprobs)}. Expected {', '.join(names)}, as in OpenAI's /v1/completions"
        )
    texts, own, top = (list(logprobs[name]) for name in names)
    own, top = (_padded(values, len(texts)) for values in (own, top))
    if not len(texts) == len(own) == len(top):
        raise EngineError(
            f"the server lists {len(texts)} tokens, {len(own)} token_logprobs and {len(top)} top_logprobs; expected one of "
            "each per token"
        )
    top = [max(entry.values(), default=None) if isinstance(entry, Mapping) else entry for entry in top]
    for value in (*own, *top):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise EngineError(f"the server gives {value!r} as a log-probability; expected a number")
    return Listed([str(text) for text in texts], own, top)


def _padded(values: list[Any], length: int) -> list[Any]:
    """With None for the first token, of which some servers list nothing."""
    return [None, *values] if len(values) == length - 1 else values


def first_listed(tokens: Sequence[int], found: Listed, texts: TokenTexts) -> int:
    """The place of the first token of a prompt that a server lists: 0, or 1 if it leaves the first out.

    Raises:
        EngineError: the listed tokens aren't those of the prompt.
    """
    for first in (0, 1):
        if _is_listed(tokens[first:], found, texts):
            return first
    raise EngineError(_not_ours(tokens, found, texts))


def aligned(tokens: Sequence[int], found: Listed, texts: TokenTexts, *, first: int) -> TokenLogprobs:
    """The entries of the prompt's tokens, of which the server lists those from place `first` on.

    `first` is a server's habit. It is found once, on a text that tells: in one of many equal tokens both would fit.

    Raises:
        EngineError: the listed tokens aren't those of the prompt.
    """
    if not _is_listed(tokens[first:], found, texts):
        raise EngineError(_not_ours(tokens, found, texts))
    nothing, size = (None,) * first, len(tokens) - first
    return TokenLogprobs(tuple(tokens), (*nothing, *found.own[:size]), (*nothing, *found.largest[:size]))


def _is_listed(tokens: Sequence[int], found: Listed, texts: TokenTexts) -> bool:
    """Whether these are the listed tokens, with or without one generated after them."""
    return len(found.texts) - len(tokens) in (0, 1) and texts.all_same(found.texts[: len(tokens)], tokens)


def _not_ours(tokens: Sequence[int], found: Listed, texts: TokenTexts) -> str:
    ours = [texts.text_of(token) for token in tokens]
    if len(found.texts) <= 1 < len(ours) - 1:
        return f"the server doesn't echo the prompt: it lists {found.texts}, and the prompt has {len(ours)} tokens"
    pairs = zip(found.texts, tokens, strict=False)
    place = next((i for i, pair in enumerate(pairs) if not texts.same(*pair)), min(len(ours), len(found.texts)))
    shown = slice(max(0, place - 2), max(0, place - 2) + _SHOWN)
    return (
        f"the server tokenizes otherwise than tokenizer=…: of a prompt of {len(ours)} tokens it lists {len(found.texts)}. "
        f"From token {shown.start} on it has {found.texts[shown]}; expected {ours[shown]}. Pass the tokenizer of the server's "
        "model, and leave tokenized_requests=true if the server takes ids"
    )
