"""Hold a serving engine to its own generation, before it scores anything.

The engine generates some tokens greedily and reports their log-probabilities. Then it reads the prompt with these tokens,
as it will read everything that is scored. Both times it must report the same numbers for the same tokens, and the tokens
must be the likeliest. A server that reports of each token the log-probability in the place after it fails here; its
scores would be noise that looks like scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xent_metrics.errors import EngineError
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs, check_logprobs, number

__all__ = ["NUM_TOKENS", "PROMPTS", "TOLERANCE", "Engine", "Generated", "probe"]

log = logging.getLogger(__name__)

#: How far two log-probabilities of a token may lie apart, in nats. Generating and reading run other kernels on batches of
#: other shapes, and an engine may compute in bfloat16, whose numbers from 16 to 32 are 1/8 apart: two steps of a logit.
TOLERANCE = 0.25
NUM_TOKENS = 12
_ENOUGH = 4
#: Beginnings that most models continue with words.
PROMPTS = (
    "The capital of France is", "Once upon a time there was a", "A language model predicts the next",
    "one, two, three, four,", "def add(a, b):\n    return a", "The weather today is",
)  # fmt: skip


class Generated(NamedTuple):
    """Greedily generated tokens.

    Attributes:
        reported: the tokens whose ids are known, from the first on, with their log-probabilities.
        own: ln p of all generated tokens, which may be more.
        texts: all generated tokens as texts.
    """

    reported: TokenLogprobs
    own: Sequence[float | None]
    texts: Sequence[str]


@dataclass(frozen=True)
class Engine:
    """What the probe needs of an engine.

    Attributes:
        name: for messages.
        generate: the greedy continuation of a prompt by a number of tokens.
        read: what the engine reports about the tokens of a prompt.
        text_of: the text of an id.
    """

    name: str
    generate: Callable[[Sequence[int], int], Generated]
    read: Callable[[Sequence[int]], TokenLogprobs]
    text_of: Callable[[int], str]


def probe(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Raise `EngineError` unless the engine reads its own greedy tokens as it generated them; these tokens.

    Prompts are tried until a dozen generated tokens are compared.
    """
    compared: list[int] = []
    texts: list[str] = []
    shift_would_show = False
    for prompt in prompts:
        generated = engine.generate(prompt, NUM_TOKENS)
        texts += generated.texts
        told = _likeliest(generated.reported)
        if not len(told):
            continue
        read = engine.read([*prompt, *told.tokens])
        shift_would_show |= _compare(engine, told, read[-len(told) :], generated.own)
        check_logprobs(read, len(read) - 1, engine=engine.name)
        compared += told.tokens
        if len(compared) >= NUM_TOKENS:
            break
    if len(compared) < _ENOUGH:
        raise EngineError(
            f"{engine.name}: only {len(compared)} of the {len(texts)} tokens that the engine generated are tokens of "
            f"the tokenizer: {texts[:NUM_TOKENS]}. Pass the tokenizer of the engine's model"
        )
    if not shift_would_show:
        log.warning(
            "%s: its greedy tokens are all about as likely, so a shift by one place would not show", engine.name
        )
    return compared


def _likeliest(told: TokenLogprobs) -> TokenLogprobs:
    """The tokens up to one that isn't the likeliest: a server may penalise tokens that come again."""
    pairs = zip(told.own[1:], told.largest[1:], strict=True)
    return told[: next((place for place, pair in enumerate(pairs, 1) if not _close(pair[:1], pair[1:])), len(told))]


def _compare(engine: Engine, told: TokenLogprobs, read: TokenLogprobs, generated: Sequence[float | None]) -> bool:
    """Raise unless both reports agree; whether a shift by one place would have shown."""
    check_logprobs(told, len(told), engine=f"{engine.name}, generating")
    shown = _table(engine, told, read)
    missing = sum(value is None for value in (*read.own, *read.largest))
    if missing:
        raise EngineError(
            f"{engine.name} gives no log-probabilities of tokens that it reads ({missing} are missing); it can't score:\n"
            f"{shown}"
        )
    if len(read) > 1 and not any(read.own):
        raise EngineError(
            f"{engine.name} gives zeros in place of the log-probabilities of tokens that it reads; it can't score:\n{shown}"
        )
    if shifted := _shifted(read, generated):
        raise EngineError(
            f"{engine.name} is off by one place: {shifted}. Its scores would be those of other tokens:\n{shown}"
        )
    if not _close(told.own, read.own):
        raise EngineError(
            f"{engine.name} reads its own greedy tokens with other log-probabilities than it generated them with; "
            f"{TOLERANCE} of difference is allowed:\n{shown}"
        )
    for row, when in ((told, "generated"), (read, "read")):
        if not _close(row.own, row.largest):
            raise EngineError(
                f"{engine.name}: greedy tokens are not the likeliest ones when {when}; {TOLERANCE} of difference is "
                f"allowed:\n{shown}"
            )
    return not _close(generated[1:], generated[:-1])


def _table(engine: Engine, told: TokenLogprobs, read: TokenLogprobs) -> str:
    """The tokens and what was reported of each, one column per token."""
    rows = [["token", *(repr(engine.text_of(token)) for token in told.tokens)]]
    for name, values in (("generated", told.own), ("read", read.own), ("largest read", read.largest)):
        rows.append([name, *(number(value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


def _shifted(read: TokenLogprobs, generated: Sequence[float | None]) -> str:
    """How the report is shifted, or nothing."""
    for row in (read.own, read.largest):
        if _close(generated, row):
            continue
        if len(generated) > 1 and _close(generated[1 : max(2, len(read))], row):
            return "what it gives for a token that it reads is of the place after it"
        if len(row) > 1 and _close(generated, row[1:]):
            return "what it gives for a token that it reads is of the place before it"
    return ""


def _close(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    """Whether the numbers agree, as far as both rows go."""
    pairs = list(zip(one, other, strict=False))
    return all(a is not None and b is not None and abs(a - b) <= TOLERANCE for a, b in pairs)
