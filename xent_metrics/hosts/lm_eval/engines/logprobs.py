"""What a serving engine reports about tokens, `TokenLogprobs`, and the token scores made of it.

A score needs two numbers of each token: its own log-probability, and the largest one at its place. Missing numbers, nan,
values above 0 and rows of zeros are errors: an engine that leaves out log-probabilities often fills in zeros, and a
sum over them is a loglikelihood of 0, the best there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xent_metrics.errors import EngineError
from xent_metrics.scoring.scores import TokenScores

__all__ = ["TokenLogprobs", "check_logprobs", "number", "token_scores"]

_SLACK = 1e-3  # an engine may round the two numbers of a token apart from each other


@dataclass(frozen=True)
class TokenLogprobs:
    """What an engine reports about a list of tokens, one entry per token.

    Attributes:
        tokens: the ids.
        own: ln p of each token after the tokens before it, in nats; None where the engine gives none, as for the first
            token of a prompt.
        largest: the largest ln p at the place of each token; None as above.
    """

    tokens: tuple[int, ...]
    own: tuple[float | None, ...]
    largest: tuple[float | None, ...]

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    def __getitem__(self, places: slice) -> TokenLogprobs:
        """The entries at some places."""
        return TokenLogprobs(self.tokens[places], self.own[places], self.largest[places])


def token_scores(found: TokenLogprobs, num_targets: int, num_bytes: Tensor | None, *, engine: str) -> TokenScores:
    """The scores of the last `num_targets` tokens, in float64: as wide as the engine sent them.

    ``nll = −ln p(token)``, ``confidence = exp(largest ln p)``, and a token is `correct` if no ln p is larger than its own,
    as in lm-eval. Ties therefore count as correct.

    Args:
        found: what the engine reports about all tokens of the prompt.
        num_targets: how many tokens at its end are scored.
        num_bytes: UTF-8 bytes by id ``(V,)``, or None for scores without `num_bytes`.
        engine: its name, for messages.

    Raises:
        EngineError: the numbers can't be log-probabilities.

    >>> found = TokenLogprobs((5, 1, 2), own=(None, -0.5, -2.0), largest=(None, -0.5, -1.0))
    >>> scores = token_scores(found, 2, torch.tensor([0, 3, 4]), engine="an engine")
    >>> scores.nll, scores.correct, scores.num_bytes
    (tensor([0.5000, 2.0000], dtype=torch.float64), tensor([ True, False]), tensor([3, 4]))
    """
    check_logprobs(found, num_targets, engine=engine)
    scored = found[len(found) - num_targets :]
    own = torch.tensor(scored.own, dtype=torch.float64)
    largest = torch.tensor(scored.largest, dtype=torch.float64)
    target = torch.tensor(scored.tokens)
    return TokenScores(
        nll=-own + 0.0,  # no −0
        counted=torch.ones_like(target, dtype=torch.bool),
        confidence=torch.maximum(own, largest).exp(),
        correct=own >= largest,
        target=target,
        num_bytes=None if num_bytes is None else num_bytes[target],
        invalid=torch.zeros_like(target, dtype=torch.bool),
    )


def check_logprobs(found: TokenLogprobs, num_targets: int, *, engine: str) -> None:
    """Raise `EngineError` unless the last `num_targets` entries are log-probabilities."""
    start = len(found) - num_targets
    for place in range(start, len(found)):
        own, largest = found.own[place], found.largest[place]
        if problem := _problem(own, largest):
            around = found[max(0, place - 3) : place + 4]
            raise EngineError(
                f"{engine}: token {place} (id {found.tokens[place]}) of a prompt of {len(found)} {problem}; around it the "
                f"engine gave {' '.join(map(number, around.own))}, and as the largest {' '.join(map(number, around.largest))}. "
                "Expected ln p ≤ 0 of every token but the first"
            )
    told = [own for own in found.own[1:] if own is not None]
    if len(told) > 1 and not any(told):
        raise EngineError(
            f"{engine}: all {len(told)} log-probabilities of a prompt are 0, as if every token had been certain. "
            "The engine doesn't compute those of prompts"
        )


def _problem(own: float | None, largest: float | None) -> str:
    for value, name in ((own, "log-probability"), (largest, "largest log-probability")):
        if value is None:
            return f"has no {name}"
        if math.isnan(value) or value > _SLACK:
            return f"has {value!r} as its {name}"
    assert own is not None
    assert largest is not None
    if own > largest + _SLACK:
        return f"has the log-probability {own:.6g}, more than the largest of its place, {largest:.6g}"
    return ""


def number(value: float | None) -> str:
    """A log-probability for messages.

    >>> number(-12.25), number(None)
    ('−12.25', 'none')
    """
    return "none" if value is None else f"{value:.2f}".replace("-", "−")
