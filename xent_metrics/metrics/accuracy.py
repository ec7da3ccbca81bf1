"""Accuracy of the top-1 prediction."""

from __future__ import annotations

from torch import Tensor

from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import CORRECT, TOKENS, SharedSum

__all__ = ["TokenAccuracy"]


class TokenAccuracy(RatioMetric):
    """Accuracy = Σ [argmax_v logits_v = target] / N: the fraction of tokens with the target as the top-1 prediction.

    Of equal maxima the first is the prediction, as in `torch.argmax`. Teacher-forced: each token is predicted from the
    true prefix. Reference: Hastie, Tibshirani and Friedman (2009), section 7.2; 1 minus the 0–1 loss.

    >>> import torch
    >>> metric = TokenAccuracy()
    >>> metric.update(torch.eye(4)[:, :3], torch.tensor([0, 1, 2, 2]))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    name = "token_accuracy"
    formula = "Σ [argmax p = target] / tokens"
    latex = r"\frac{1}{N} \sum_t \left[\operatorname{argmax}_v p_t(v) = y_t\right]"
    value_unit = "share of tokens"
    value_range = (0.0, 1.0)
    reference = "1 minus the 0–1 loss of Hastie et al. (2009), The Elements of Statistical Learning, section 7.2"
    use_when = "To see how often the likeliest token is the right one."
    hides = (
        "How sure the model was: a target with p = 0.49 may count as little as one with p = 0. Each token is "
        "predicted from the true text before it, so it says little about texts that the model writes itself."
    )
    requires = frozenset({"correct"})
    higher_is_better = True

    def sum_names(self) -> tuple[SharedSum, SharedSum]:
        return CORRECT, TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        assert scores.correct is not None
        return scores.correct
