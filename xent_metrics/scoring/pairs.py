"""Two models' distributions over the same rows, scored together in one chunked pass.

    scores = score_pair(base_logits, other_logits, target)       # P from the base, Q from the other
    for metric in metrics: metric.update(scores)

Everything is taken in log space from the two log-softmaxes, in float32 or wider, with no host sync.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.score import as_tensor, score_tokens
from xent_metrics.scoring.scores import TokenScores

__all__ = ["PAIR_SCORES", "score_pair"]

#: What `score_pair` gives of each row, beside the other model's own scores of the target.
PAIR_SCORES = (
    "kl_divergence",
    "jensen_shannon_divergence",
    "soft_cross_entropy",
    "same_top",
    "base_nll",
    "probability_change",
)
_CPU_CHUNK = 2**18
_DEVICE_CHUNK = 2**21


@torch.no_grad()
def score_pair(
    logits: Any,
    other_logits: Any,
    target: Any = None,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    weight: Any = None,
) -> TokenScores:
    """Score the distribution Q of `other_logits` against the P of `logits`, row by row, both ``(…, V)``.

    The scores are the other model's own of `target` (without targets: of the base's top-1), nan where either model's are,
    and in `extra_scores`

        kl_divergence = Σ_v p_v (ln p_v − ln q_v)            soft_cross_entropy = −Σ_v p_v ln q_v
        jensen_shannon_divergence = ½ KL(P‖M) + ½ KL(Q‖M), M = ½ (P + Q)      all in nats
        same_top: whether both have one top-1;   base_nll = −ln p(target);   probability_change = q(target) − p(target)

    Args:
        temperature: divides both logits.
        ignore_index, weight: as in `score_tokens`.

    Raises:
        InvalidInputError: shapes that differ, or a temperature that is not positive.

    >>> score_pair(torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])).extra_scores["kl_divergence"]
    tensor([inf])
    """
    base, other = as_tensor(logits), as_tensor(other_logits)
    if base.shape != other.shape or base.ndim < 1 or base.device != other.device:
        raise InvalidInputError(
            f"expected two tensors of logits of one shape (…, V) on one device; got {tuple(base.shape)} on {base.device} "
            f"and {tuple(other.shape)} on {other.device}. Two models must share their vocabulary"
        )
    if not temperature > 0:
        raise InvalidInputError(f"temperature is positive; got {temperature!r}")
    if target is None:
        target = base.argmax(-1)
    own = score_tokens(_tempered(other, temperature), target, ignore_index=ignore_index, weight=weight)
    if own.target is None:
        raise InvalidInputError("expected integer targets beside two tensors of logits; got distributions")
    rows, index = base.reshape(-1, base.shape[-1]), own.target.reshape(-1)
    others = other.reshape(-1, other.shape[-1])
    size = _chunk_rows(len(rows), rows.shape[-1], rows.device)
    chunks = zip(*(torch.split(tensor, size) for tensor in (rows, others, index)), strict=True)
    parts = [_pair(_log_prob(p, temperature), _log_prob(q, temperature), ids) for p, q, ids in chunks]
    extra_scores = {name: torch.cat([part[name] for part in parts]).reshape(own.nll.shape) for name in PAIR_SCORES}
    extra_scores = {name: _where_counted(own, value) for name, value in extra_scores.items()}
    nll = torch.where(extra_scores["base_nll"].isnan(), torch.nan, own.nll)
    return dataclasses.replace(own, nll=nll, extra_scores=extra_scores)


def _chunk_rows(rows: int, vocab_size: int, device: torch.device) -> int:
    if torch.compiler.is_compiling():
        return max(1, rows)
    return max(8, (_CPU_CHUNK if device.type == "cpu" else _DEVICE_CHUNK) // vocab_size)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _log_prob(logits: Tensor, temperature: float) -> Tensor:
    tempered = _tempered(logits, temperature)
    return torch.log_softmax(tempered, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _pair(log_p: Tensor, log_q: Tensor, index: Tensor) -> dict[str, Tensor]:
    """`PAIR_SCORES` of a chunk of rows, ``(rows, V)`` twice."""
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    base_nll, other_nll = (-x.gather(-1, index[:, None]).squeeze(-1) for x in (log_p, log_q))
    return {
        "kl_divergence": _expected(p, log_p - log_q),
        "jensen_shannon_divergence": 0.5 * (_expected(p, log_p - log_m) + _expected(q, log_q - log_m)),
        "soft_cross_entropy": -_expected(p, log_q),
        "same_top": log_p.argmax(-1) == log_q.argmax(-1),
        "base_nll": base_nll,
        "probability_change": torch.exp(-other_nll) - torch.exp(-base_nll),
    }


def _expected(prob: Tensor, values: Tensor) -> Tensor:
    """Σ p · value, with 0 where p is 0 whatever the value; a nan among the probabilities stays nan."""
    return torch.where(prob == 0, 0.0, prob * values).sum(-1)


def _where_counted(scores: TokenScores, values: Tensor) -> Tensor:
    return torch.where(scores.counted, values, torch.zeros_like(values))
