"""Scores of two models on the same rows, computed together in one chunked pass.

    scores = score_pair(base_logits, other_logits, target)       # P from the base, Q from the other
    for metric in metrics: metric.update(scores)

The divergences are sums of terms of which none is negative, in float64: models that differ by the rounding of their weights
have divergences of 1e-9 and less, which the differences of float32 log-probabilities don't hold. Nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.devices import chunk_rows, chunks, widest_float
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.rows import first_argmax
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import TokenScores

__all__ = ["score_pair"]

_FAR = 80.0  # a ratio of e^80 between two probabilities, beside which the smaller one is nothing, fits in a float32


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
    tensor([inf], dtype=torch.float64)
    """
    base, other = as_tensor(logits), as_tensor(other_logits)
    _check_pair(base, other, temperature)
    if target is None:
        target = base.argmax(-1)
    scored = [
        score_tokens(_tempered(x, temperature), target, ignore_index=ignore_index, weight=weight) for x in (base, other)
    ]
    own = scored[1]
    if own.target is None:
        raise InvalidInputError("expected integer targets for two models' logits; got distributions")
    base_nll, other_nll = (x.nll.to(widest_float(base.device)) for x in scored)
    columns = {
        **_compare(base, other, temperature),
        "base_nll": base_nll,
        "probability_change": torch.exp(-other_nll) - torch.exp(-base_nll),
    }
    extra_scores = {name: torch.where(own.counted, x, torch.zeros_like(x)) for name, x in columns.items()}
    nll = torch.where(base_nll.isnan(), torch.nan, own.nll)
    return dataclasses.replace(own, nll=nll, extra_scores=extra_scores)


def _check_pair(base: Tensor, other: Tensor, temperature: float) -> None:
    if base.shape != other.shape or base.ndim < 1 or base.device != other.device:
        raise InvalidInputError(
            f"expected two tensors of logits of one shape (…, V) on one device; got {tuple(base.shape)} on {base.device} "
            f"and {tuple(other.shape)} on {other.device}. Two models must share their vocabulary"
        )
    if not temperature > 0:
        raise InvalidInputError(f"temperature is positive; got {temperature!r}")


def _compare(base: Tensor, other: Tensor, temperature: float) -> dict[str, Tensor]:
    """The scores of whole distributions, of all rows."""
    vocab_size = base.shape[-1]
    size = chunk_rows(4 * vocab_size, base.device)  # two models' logits per row, twice as wide
    flat = base.reshape(-1, vocab_size), other.reshape(-1, vocab_size)
    parts = [_compare_chunk(_log_prob(p, temperature), _log_prob(q, temperature)) for p, q in chunks(size, *flat)]
    return {name: torch.cat([part[name] for part in parts]).reshape(base.shape[:-1]) for name in parts[0]}


def _compare_chunk(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """The divergences as sums of terms of which none is negative, so that small ones don't drown in larger ones.

    Σ p ln(p/q) = Σ [p ln(p/q) + q − p], with q − p = p · expm1(ln(q/p)) where they are close.
    """
    p, q = log_p.exp(), log_q.exp()
    log_ratio = torch.where(log_p == log_q, 0.0, log_p - log_q)  # of two that are impossible, too
    at_least = log_ratio.clamp(min=-_FAR)
    q_over_p, p_over_q = torch.expm1(-at_least), torch.expm1(log_ratio.clamp(max=_FAR))  # q/p − 1, p/q − 1
    more = torch.where(log_ratio.abs() < 1, p * q_over_p, q - p)
    to_mean = p * torch.log1p(q_over_p / 2) + q * torch.log1p(p_over_q / 2)  # p ln(m/p) + q ln(m/q), m = (p + q)/2
    return {
        "kl_divergence": (p * at_least + more).clamp(min=0.0).sum(-1),
        "jensen_shannon_divergence": to_mean.clamp(max=0.0).sum(-1).abs() / 2,
        "soft_cross_entropy": -torch.where(p == 0, 0.0, p * log_q).sum(-1),
        "same_top": first_argmax(log_p) == first_argmax(log_q),
    }


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _log_prob(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(_tempered(logits.to(widest_float(logits.device)), temperature), dim=-1)
