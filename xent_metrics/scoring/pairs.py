"""Scores of two models on the same rows, computed together in one chunked pass.

    scores = score_pair(base_logits, other_logits, target)       # P from the base, Q from the other
    for metric in metrics: metric.update(scores)

Everything is computed in log space from the two log-softmaxes, in float32 or wider, without waiting for the device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.devices import chunk_rows, chunks
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import TokenScores

__all__ = ["score_pair"]

#: The extra scores that `score_pair` gives of each row.
PAIR_SCORES = (
    "kl_divergence",
    "jensen_shannon_divergence",
    "soft_cross_entropy",
    "same_top",
    "base_nll",
    "probability_change",
)


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
    """Compare two models' distributions row by row: P from `logits`, Q from `other_logits`.

        kl_divergence = Σ_v p_v (ln p_v − ln q_v)            soft_cross_entropy = −Σ_v p_v ln q_v
        jensen_shannon_divergence = ½ KL(P‖M) + ½ KL(Q‖M), M = ½ (P + Q)      all in nats
        same_top = [argmax p = argmax q]    base_nll = −ln p(target)    probability_change = q(target) − p(target)

    Args:
        logits: the base model's, ``(…, V)``.
        other_logits: the other model's, of the same shape and on the same device.
        target: class ids ``(…)``; the base's top-1 classes by default.
        temperature: divides both logits.
        ignore_index: the target that doesn't count.
        weight: ``(…)``, as for `score_tokens`.

    Returns:
        The other model's scores of the targets, with the values above in `extra_scores`. nll is nan if either model's is.

    Raises:
        InvalidInputError: shapes or devices differ, targets are distributions, or the temperature isn't positive.

    >>> score_pair(torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])).extra_scores["kl_divergence"]
    tensor([inf])
    """
    base, other = as_tensor(logits), as_tensor(other_logits)
    _check_pair(base, other, temperature)
    if target is None:
        target = base.argmax(-1)
    own = score_tokens(_tempered(other, temperature), target, ignore_index=ignore_index, weight=weight)
    if own.target is None:
        raise InvalidInputError("expected integer targets for two models' logits; got distributions")
    columns = _compare(base, other, own.target, temperature)
    extra_scores = {name: torch.where(own.counted, x, torch.zeros_like(x)) for name, x in columns.items()}
    nll = torch.where(extra_scores["base_nll"].isnan(), torch.nan, own.nll)
    return dataclasses.replace(own, nll=nll, extra_scores=extra_scores)


def _check_pair(base: Tensor, other: Tensor, temperature: float) -> None:
    if base.shape != other.shape or base.ndim < 1 or base.device != other.device:
        raise InvalidInputError(
            f"expected two tensors of logits of one shape (…, V) on one device; got {tuple(base.shape)} on {base.device} "
            f"and {tuple(other.shape)} on {other.device}. Two models must share their vocabulary"
        )
    if not temperature > 0:
        raise InvalidInputError(f"temperature is positive; got {temperature!r}")


def _compare(base: Tensor, other: Tensor, index: Tensor, temperature: float) -> dict[str, Tensor]:
    """`PAIR_SCORES` of all rows, in the shape of `index`."""
    vocab_size = base.shape[-1]
    size = chunk_rows(2 * vocab_size, base.device)  # two models' logits per row
    flat = base.reshape(-1, vocab_size), other.reshape(-1, vocab_size), index.reshape(-1)
    parts = [
        _compare_chunk(_log_prob(p, temperature), _log_prob(q, temperature), ids) for p, q, ids in chunks(size, *flat)
    ]
    return {name: torch.cat([part[name] for part in parts]).reshape(index.shape) for name in PAIR_SCORES}


def _compare_chunk(log_p: Tensor, log_q: Tensor, index: Tensor) -> dict[str, Tensor]:
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


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _log_prob(logits: Tensor, temperature: float) -> Tensor:
    tempered = _tempered(logits, temperature)
    return torch.log_softmax(tempered, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _expected(prob: Tensor, values: Tensor) -> Tensor:
    """Σ p · value, where a term is 0 if p is 0, whatever the value; nan among the probabilities stays nan."""
    return torch.where(prob == 0, 0.0, prob * values).sum(-1)
