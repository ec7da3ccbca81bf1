"""Calibration of the probabilities of all classes rather than the top-1's: class by class, and over all together.

Both metrics sum residuals: over a bin, Σ (y − p), the target's indicator minus the probability, is n_b (accuracy_b −
confidence_b).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.metrics.confidence_bins import check_num_bins, confidence_bin
from xent_metrics.scoring.devices import widest_float
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum
from xent_metrics.sums.terms import Binned, Terms

__all__ = ["ClasswiseCalibrationError", "FullCalibrationError"]


class _Residuals(TokenMetric):
    """Σ_b |Σ residual| / tokens."""

    requires = frozenset({"target"})
    higher_is_better = False

    def __init__(self, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = check_num_bins(self.name, num_bins)

    @property
    @abstractmethod
    def _sum_name(self) -> str:
        """The name of the binned sum of residuals."""

    def shared_sums(self) -> Sequence[SharedSum]:
        return (TOKENS,)

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return sums[self._sum_name].abs().sum() / sums[TOKENS.name]


class FullCalibrationError(_Residuals):
    """Full calibration error (Full-ECE) = Σ_b |B_b|/N · |A_b − C_b| over M equal-width bins of all V probabilities per token.

    B_b holds the pairs of a token and a class with a probability p in (b/M, (b + 1)/M]; A_b is the fraction of them in
    which the class is the target, C_b their mean p, and N the number of tokens: |B_b| · |A_b − C_b| = |Σ y − Σ p|.

    Args:
        num_bins: the number of bins, M.
        kwargs: as for `TokenMetric`.

    Between 0 and 2. It looks at the whole distribution that is sampled from; the expected calibration error looks at the
    top-1. Fewer than M classes have a p above 1/M, so the M likeliest are binned and all others are in the first bin.

    Reference: Liu et al. (2024), Full-ECE, arXiv:2406.11345.

    Raises:
        MetricOptionError: `num_bins` is not a whole number from 1 to 1,048,576.

    >>> metric = FullCalibrationError()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # one bin: eight p of ½, four targets
    >>> metric.compute()
    tensor(0., dtype=torch.float64)
    """

    name = "full_calibration_error"
    formula = "Σ_b |Σ_b y − Σ_b p| / tokens, over all classes' p"
    latex = r"\frac{1}{N} \sum_{b=1}^{M} \left|\sum_{(t, v) \in B_b} \left([v = y_t] - p_t(v)\right)\right|"
    value_unit = "probability per token"
    value_range = (0.0, math.inf)
    reference = "Liu et al. (2024), arXiv:2406.11345"
    use_when = (
        "For language models that are sampled from: it looks at the probabilities of all tokens, not at the top-1's "
        "alone."
    )
    hides = (
        "Small probabilities: nearly all pairs of a token and a class are in the first bin, where their errors cancel."
    )

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {self._sum_name: ExtraScore(self._residuals, (self.num_bins,))}

    @property
    def _sum_name(self) -> str:
        return f"probability_bins[{self.num_bins}].residual"

    def _residuals(self, log_prob: Tensor, index: Tensor) -> Tensor:
        """Σ (y − p) of each bin, ``(rows, num_bins)``."""
        top = log_prob.topk(min(self.num_bins, log_prob.shape[-1])).values.exp()
        target = log_prob.gather(-1, index[:, None]).exp()
        mass = (self._in_bin(top) * top[..., None]).sum(1)
        mass[:, 0] = 1 - mass[:, 1:].sum(-1)
        return self._in_bin(target)[:, 0] - mass + 0 * top[:, :1]  # nan where a probability is nan

    def _in_bin(self, prob: Tensor) -> Tensor:
        """``(rows, K)`` to the bins' indicators ``(rows, K, num_bins)``."""
        bins = torch.arange(self.num_bins, device=prob.device)
        return (confidence_bin(prob, self.num_bins)[..., None] == bins).to(prob.dtype)

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        residual = scores.weighted(scores.extra_scores[self._sum_name])
        bins = torch.arange(self.num_bins, device=residual.device).expand_as(residual)
        return {self._sum_name: Binned(residual, bins, self.num_bins)}


class ClasswiseCalibrationError(_Residuals):
    """Classwise calibration error = 1/K Σ_k Σ_b n_kb/N · |frequency_kb − p_kb| over M equal-width bins of each class' p.

    Args:
        classes: the number of classes K, to look at all of them; or the ids of the classes to look at.
        num_bins: the number of bins, M.
        kwargs: as for `TokenMetric`.

    In [0, 1]. The state holds K · M sums of 64 bytes; a batch takes K numbers per token, and 64 bytes for each of them
    while it is added. Meant for up to some hundred classes, or for the ids of a few answers in a vocabulary.

    Reference: Kull et al. (2019), Beyond temperature scaling, arXiv:1910.12656.

    Raises:
        MetricOptionError: options that name no classes or bins.
        InvalidInputError: scores of another number of classes.

    >>> metric = ClasswiseCalibrationError(classes=3)
    >>> metric.update(torch.zeros(3, 3), torch.tensor([0, 0, 1]))   # (|⅔ − ⅓| + |⅓ − ⅓| + |0 − ⅓|) / 3
    >>> metric.compute()
    tensor(0.2222, dtype=torch.float64)
    """

    name = "classwise_calibration_error"
    formula = "1/K Σ_k Σ_b n_kb/N · |frequency_kb − p_kb|"
    latex = r"\frac{1}{K} \sum_{k=1}^{K} \sum_{b=1}^{M} \frac{n_{kb}}{N} \left|\mathrm{freq}_{kb} - \bar{p}_{kb}\right|"
    value_unit = "probability"
    value_range = (0.0, math.inf)
    reference = "Kull et al. (2019), arXiv:1910.12656"
    use_when = "For classification with few classes, where the probability of each class is used."
    hides = (
        "How often the classes occur: all of them count the same. The value is too high when bins hold few rows, and "
        "most rows of a rare class are in its first bin."
    )

    def __init__(self, classes: int | Sequence[int] = 2, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(num_bins=num_bins, **kwargs)
        self.classes = classes if isinstance(classes, int) else tuple(map(int, classes))
        ids = range(self.classes) if isinstance(self.classes, int) else self.classes
        if len(ids) == 0 or min(ids) < 0 or len(set(ids)) < len(ids):
            raise MetricOptionError(f"{self.name}: classes is a number of classes, or distinct ids; got {classes!r}")
        self._largest = max(ids)
        self.register_buffer("_ids", torch.tensor(ids), persistent=False)
        self._score_name = f"probability(classes={self.classes})"

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {self._score_name: ExtraScore(self._probabilities, (len(self._class_ids),))}

    @property
    def _class_ids(self) -> Tensor:
        assert isinstance(self._ids, Tensor)
        return self._ids

    def _probabilities(self, log_prob: Tensor, index: Tensor) -> Tensor:
        """The probabilities of the classes, ``(rows, K)``; 0 for a missing class (a question with fewer choices)."""
        self._check_classes(log_prob.shape[-1])
        missing = max(0, self._largest + 1 - log_prob.shape[-1])
        padded = F.pad(log_prob, (0, missing), value=-torch.inf) if missing else log_prob
        return padded.index_select(-1, self._class_ids.to(log_prob.device)).exp()

    @property
    def _sum_name(self) -> str:
        return f"{self._score_name}[{self.num_bins}].residual"

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        assert scores.target is not None
        prob = scores.extra_scores[self._score_name]
        ids = self._class_ids.to(prob.device)
        cells = confidence_bin(prob, self.num_bins) + torch.arange(len(ids), device=prob.device) * self.num_bins
        residual = (scores.target[..., None] == ids).to(widest_float(prob.device)) - prob
        return {self._sum_name: Binned(scores.weighted(residual), cells, len(ids) * self.num_bins)}

    def _check_classes(self, vocab_size: int) -> None:
        if isinstance(self.classes, int) and vocab_size > self.classes:
            raise InvalidInputError(
                f"{self.name} was built for {self.classes} classes; got {vocab_size}. "
                f"Set classes={vocab_size}, or the ids of those to look at"
            )
        if not isinstance(self.classes, int) and vocab_size <= self._largest:
            raise InvalidInputError(
                f"{self.name} looks at the class {self._largest}; got {vocab_size} classes, the last of them {vocab_size - 1}"
            )

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return super().value(sums) / len(self._class_ids)
