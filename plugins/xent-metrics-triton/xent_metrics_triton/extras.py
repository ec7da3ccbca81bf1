"""Which extra scores the kernels know, told by their functions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xent_metrics.metrics.distribution import entropy, squared_error, squared_log_normaliser
from xent_metrics.metrics.ranking import target_rank
from xent_metrics.scoring.scores import ExtraScore

__all__ = ["as_result", "known"]

_KNOWN = {
    (entropy, "log_prob"): "entropy",
    (squared_error, "log_prob"): "squared_error",
    (squared_log_normaliser, "logits"): "squared_log_normaliser",
    (target_rank, "logits"): "target_rank",
}


def known(extra_scores: Mapping[str, ExtraScore]) -> dict[str, str]:
    """The kernels' names of those extra scores that they know, by the names that the caller gave them."""
    found = {name: _KNOWN.get((score.function, score.of)) for name, score in extra_scores.items()}
    return {name: known for name, known in found.items() if known is not None}


def as_result(scores: dict[str, Tensor], wanted: Mapping[str, str]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The result of a hook."""
    extras = {name: scores[known] for name, known in wanted.items()}
    return scores["nll"], scores["confidence"], scores["correct"], extras
