"""Accuracy of the top-1 prediction."""

from __future__ import annotations

from torch import Tensor

from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import RatioMetric

__all__ = ["TokenAccuracy"]


class TokenAccuracy(RatioMetric):
    """Accuracy = Σ [argmax_v logits_v = target] / N: the share of tokens whose top-1 prediction is the target, in [0, 1].

    Of equal maxima the first is the prediction, as `torch.argmax` decides. Teacher-forced: each token is predicted from
    the true prefix. Reference: Hastie, Tibshirani and Friedman (2009), section 7.2; 1 minus the 0–1 loss.

    >>> import torch
    >>> metric = TokenAccuracy()
    >>> metric.update(torch.eye(4)[:, :3], torch.tensor([0, 1, 2, 2]))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    name = "token_accuracy"
    formula = "Σ [argmax p = target] / tokens"
    value_unit = "share of tokens"
    reference = "1 minus the 0–1 loss of Hastie et al. (2009), The Elements of Statistical Learning, section 7.2"
    requires = frozenset({"correct"})
    higher_is_better = True

    def sum_names(self) -> tuple[str, str]:
        return "correct", "tokens"

    def per_token(self, scores: TokenScores) -> Tensor:
        assert scores.correct is not None
        return scores.correct
