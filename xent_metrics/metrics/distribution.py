"""Metrics of the whole predicted distribution: its entropy, its squared error, and its normaliser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import TOKENS, ExtraSum, SharedSum

__all__ = ["BrierScore", "PredictionEntropy", "ZLoss"]


def entropy(log_prob: Tensor, index: Tensor) -> Tensor:
    """−Σ_v p_v ln p_v in nats, with 0 ln 0 = 0; the target doesn't matter."""
    finite = log_prob.clamp(min=torch.finfo(log_prob.dtype).min)  # 0 · −inf would be nan
    return -(log_prob.exp() * finite).sum(-1)


def squared_error(log_prob: Tensor, index: Tensor) -> Tensor:
    """Σ_v (p_v − y_v)², y the target's indicator."""
    residual = log_prob.exp()
    residual.scatter_add_(-1, index[:, None], -torch.ones_like(residual[:, :1]))
    return residual.square_().sum(-1)


def squared_log_normaliser(logits: Tensor, index: Tensor) -> Tensor:
    """(ln Σ_v exp(logits_v))²; the target doesn't matter."""
    return logits.logsumexp(-1).square()


class _MeanOfRows(RatioMetric):
    """The mean of one extra score of each row."""

    requires = frozenset[str]()
    _score_name: ClassVar[str]
    _score: ClassVar[ExtraScore]

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {self._score_name: self._score}

    def sum_names(self) -> tuple[SharedSum, SharedSum]:
        return ExtraSum(self._score_name), TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.extra_scores[self._score_name]


class PredictionEntropy(_MeanOfRows):
    """Prediction entropy = −Σ_t Σ_v p_v ln p_v / N, in nats per token: how undecided the model is.

    Between 0 and ln V; the targets don't matter. A calibrated model's entropy equals its cross entropy: a cross entropy above
    it is surprise that the model did not expect. Reference: Shannon (1948), A Mathematical Theory of Communication.

    >>> metric = PredictionEntropy()
    >>> metric.update(torch.zeros(2, 8), torch.tensor([1, 2]))      # uniform over 8: ln 8
    >>> metric.compute()
    tensor(2.0794, dtype=torch.float64)
    """

    name = "prediction_entropy"
    formula = "−Σ_t Σ_v p_v ln p_v / tokens"
    latex = r"-\frac{1}{N} \sum_t \sum_v p_t(v) \ln p_t(v)"
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Shannon (1948), A Mathematical Theory of Communication"
    use_when = (
        "Beside the cross entropy: it is the loss that the model itself expects. A cross entropy above it is a sign "
        "of overconfidence."
    )
    hides = "Whether the model is right: one that is sure and wrong has a low entropy, too."
    higher_is_better = None
    _score_name = "entropy"
    _score = ExtraScore(entropy)


class BrierScore(_MeanOfRows):
    """Brier score = Σ_t Σ_v (p_v − y_v)² / N, y the target's indicator: the mean squared error, between 0 and 2.

    The sum runs over all classes, as Brier defined it and lm-eval computes it. For two classes it is twice the default of
    scikit-learn's `brier_score_loss`, which looks at the positive class alone (`scale_by_half=False` gives ours).
    Reference: Brier (1950), Verification of Forecasts Expressed in Terms of Probability.

    >>> metric = BrierScore()
    >>> metric.update(torch.zeros(2, 2), torch.tensor([0, 1]))      # (1/2)² + (1/2)²
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    name = "brier_score"
    higher_is_better = False
    formula = "Σ_t Σ_v (p_v − y_v)² / tokens"
    latex = r"\frac{1}{N} \sum_t \sum_v \left(p_t(v) - [v = y_t]\right)^2"
    value_unit = "squared error per token"
    value_range = (0.0, 2.0)
    reference = "Brier (1950), Verification of Forecasts Expressed in Terms of Probability"
    use_when = (
        "As a proper score with bounds, in which one very unlikely target doesn't decide; for multiple choice, over "
        "the choices."
    )
    hides = (
        "Small probabilities: a target with p = 0.001 and one with p = 0.000001 count the same, so it says little "
        "about rare tokens."
    )
    _score_name = "squared_error"
    _score = ExtraScore(squared_error)


class ZLoss(_MeanOfRows):
    """z-loss = Σ_t (ln Z_t)² / N with Z = Σ_v exp(logits_v), in squared nats: how far the logits are from log-probabilities.

    0 if the logits are normalised. Without the factor of 1e-4 that it has in PaLM's training loss.
    Reference: Chowdhery et al. (2022), PaLM, arXiv:2204.02311, section 5.

    >>> metric = ZLoss()
    >>> metric.update(torch.zeros(2, 8), torch.tensor([1, 2]))      # (ln 8)²
    >>> metric.compute()
    tensor(4.3241, dtype=torch.float64)
    """

    name = "z_loss"
    higher_is_better = False
    formula = "Σ_t (ln Σ_v exp(logits_v))² / tokens"
    latex = r"\frac{1}{N} \sum_t \left(\ln \sum_v e^{z_t(v)}\right)^2"
    value_unit = "squared nats per token"
    value_range = (0.0, math.inf)
    reference = "Chowdhery et al. (2022), arXiv:2204.02311"
    use_when = (
        "To watch whether the logits drift during training. Adding a constant to all logits changes no probability, "
        "but makes their rounding errors larger."
    )
    hides = "The quality of predictions, of which it says nothing."
    _score_name = "squared_log_normaliser"
    _score = ExtraScore(squared_log_normaliser, of="logits")
