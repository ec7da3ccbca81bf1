"""The rank of the target among all classes: top-k accuracy and the mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.devices import widest_float
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum

__all__ = ["MeanReciprocalRank", "TopKAccuracy", "target_rank"]

_RANK = "target_rank"


def target_rank(logits: Tensor, index: Tensor) -> Tensor:
    """The rank of the target, 1 the best, in a stable descending sort of the logits: of equal logits the lower id is ahead.

    >>> target_rank(torch.tensor([[3.0, 5.0, 3.0]]).expand(3, 3), torch.tensor([0, 1, 2]))
    tensor([2, 1, 3])
    """
    target = logits.gather(-1, index[:, None])
    is_earlier = torch.arange(logits.shape[-1], device=logits.device) < index[:, None]
    is_ahead = (logits > target) | ((logits == target) & is_earlier)
    return 1 + is_ahead.sum(-1)


class _OfRank(RatioMetric):
    higher_is_better = True

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {_RANK: ExtraScore(target_rank, of="logits")}

    def rank(self, scores: TokenScores) -> Tensor:
        """Each row's rank, in the widest float of the device."""
        rank = scores.extra_scores[_RANK]
        return rank.to(widest_float(rank.device))


class TopKAccuracy(_OfRank):
    """Top-k accuracy = Σ [rank of the target ≤ k] / N: the fraction of tokens with the target among the k likeliest classes.

    Args:
        k: the number of classes looked at; 1 gives `token_accuracy`.
        kwargs: as for `TokenMetric`.

    Of equal logits the lower id is ahead, as in a stable sort, so a uniform prediction scores k/V and not 1.
    Reference: Russakovsky et al. (2015), ImageNet Large Scale Visual Recognition Challenge, arXiv:1409.0575.

    Raises:
        MetricOptionError: `k` is not a whole number from 1 to 2^31.

    >>> metric = TopKAccuracy(k=2)
    >>> metric.update(torch.tensor([[3.0, 2.0, 1.0]]).expand(3, 3), torch.tensor([0, 1, 2]))
    >>> metric.compute()
    tensor(0.6667, dtype=torch.float64)
    """

    name = "top_k_accuracy"
    formula = "Σ [rank(target) ≤ k] / tokens"
    latex = r"\frac{1}{N} \sum_t \left[\mathrm{rank}_t(y_t) \le k\right]"
    value_unit = "share of tokens"
    value_range = (0.0, 1.0)
    reference = "Russakovsky et al. (2015), arXiv:1409.0575"
    use_when = "Where several candidates are shown, searched or sampled from."
    hides = "The order within the first k, everything beyond them, and all probabilities."

    def __init__(self, k: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 2**31:
            raise MetricOptionError(f"{self.name}: k is a whole number from 1 to 2^31; got {k!r}")
        self.k = k

    def sum_names(self) -> tuple[str, SharedSum]:
        return f"correct[top {self.k}]", TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return self.rank(scores) <= self.k


class MeanReciprocalRank(_OfRank):
    """Mean reciprocal rank = Σ 1 / rank of the target / N, in (0, 1]: 1 if every target is the top-1.

    Ranks start at 1; of equal logits the lower id is ahead, as in a stable sort.
    Reference: Voorhees (1999), The TREC-8 Question Answering Track Report.

    >>> metric = MeanReciprocalRank()
    >>> metric.update(torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(3, 4), torch.tensor([0, 1, 3]))
    >>> metric.compute()        # (1 + 1/2 + 1/4) / 3
    tensor(0.5833, dtype=torch.float64)
    """

    name = "mean_reciprocal_rank"
    formula = "Σ 1 / rank(target) / tokens"
    latex = r"\frac{1}{N} \sum_t \frac{1}{\mathrm{rank}_t(y_t)}"
    value_unit = "reciprocal rank"
    value_range = (0.0, 1.0)
    reference = "Voorhees (1999), The TREC-8 Question Answering Track Report"
    use_when = "To compare rankings in which the target is often near the top and seldom first."
    hides = "All probabilities. The first ranks decide: from rank 1 to 2 is as large a step as from rank 2 to infinity."

    def sum_names(self) -> tuple[str, SharedSum]:
        return "reciprocal_rank", TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return 1 / self.rank(scores)
