"""Min-k% probability: the mean log-probability of the least likely tokens of a document.

Which tokens are the least likely is known only when all have been seen, so their log-probabilities can't simply be added.
What can be added is a histogram: the number of tokens and their nats in fixed bins of the nll. Histograms merge exactly, in
any order, and the value is read off them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xent_metrics import Binned, SharedSum, TokenMetric, TokenScores
from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics.confidence_bins import check_num_bins
from xent_metrics.metrics.running_sum import running_sum
from xent_metrics.sums.shared_sums import remember

__all__ = ["MinKProbability", "NllBins", "bin_width", "nll_bin", "tail_mean"]

_HIGHEST = 100.0  # nats; the last bin holds all above


@dataclass(frozen=True)
class NllBins(SharedSum):
    """Tokens, or their nats, by bins of the nll."""

    kind: str
    num_bins: int

    @property
    def name(self) -> str:
        return f"nll_bins[{self.num_bins}].{self.kind}"

    def terms(self, scores: TokenScores) -> Binned:
        bins = remember(scores, f"{__name__}: {self.num_bins}", lambda: nll_bin(scores.nll, self.num_bins))
        values = scores.nll if self.kind == "nats" else torch.ones_like(scores.nll, dtype=torch.float32)
        return Binned(scores.weighted(values), bins, self.num_bins)


def bin_width(num_bins: int) -> float:
    """The width of a bin in ln(1 + nll): 0.018 for 256 bins, so a bin at n nats is 0.018 · (1 + n) nats wide."""
    return math.log1p(_HIGHEST) / num_bins


def nll_bin(nll: Tensor, num_bins: int) -> Tensor:
    """The index of the bin, of equal widths in ln(1 + nll); nan goes to bin 0."""
    place = torch.log1p(nll) / bin_width(num_bins)
    return place.nan_to_num(0.0, posinf=num_bins).long().clamp(0, num_bins - 1)


def tail_mean(tokens: Tensor, nats: Tensor, share: float) -> Tensor:
    """The mean nll of the `share` of tokens with the highest nll, 0-d, from histograms ``(num_bins,)``; nan without tokens.

    The bin in which the share ends is taken in part, at its mean: which of its tokens are higher isn't known.

    >>> tail_mean(torch.tensor([3.0, 1.0]), torch.tensor([3.0, 9.0]), 0.5)  # one of 9 nats, one of 1
    tensor(5.)
    """
    tokens, nats = tokens.flip(0), nats.flip(0)
    wanted = share * tokens.sum()
    taken = torch.minimum((wanted - (running_sum(tokens) - tokens)).clamp(min=0), tokens)
    is_taken = taken > 0
    mean = torch.where(is_taken, nats, 0) / torch.where(is_taken, tokens, 1)
    return (taken * mean).sum() / wanted


class MinKProbability(TokenMetric):
    """Min-k% probability = 1/(k N) Σ ln p(target) over the k N tokens with the lowest, in nats per token.

    Args:
        k: the share of tokens, in (0, 1]; with 1 it is minus the cross entropy.
        num_bins: of the histogram of the nll, in ln(1 + nll).
        kwargs: as for `TokenMetric`.

    It tells texts that a model has seen in training (higher) from new ones, document by document. The value is that of all
    tokens that were added, so add one document, or use ``Grouped(MinKProbability(), by=Document(n), average="macro")``;
    lm-eval's samples have each document's own. k N isn't rounded to whole tokens, as it is in the paper.

    It is exact but for the bin in which the k N tokens end, whose tokens count with their mean: off by less than that
    bin's share of them times its width, 0.018 · (1 + nll) for 256 bins.

    Reference: Shi et al. (2023), Detecting Pretraining Data from Large Language Models, arXiv:2310.16789.

    >>> metric = MinKProbability(k=0.5)
    >>> metric.update(torch.tensor([[0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 0]))  # ½, and certain
    >>> metric.compute()
    tensor(-0.6931, dtype=torch.float64)
    """

    name = "min_k_probability"
    formula = "1/(k N) Σ ln p(target) over the k N least likely tokens"
    latex = r"\frac{1}{k N} \sum_{t \in \mathrm{min}_k} \ln p_t(y_t)"
    use_when = "To guess whether a document was in the training data: of such documents even the least likely tokens are likely."
    hides = "How hard the text is: compare it with texts of the same kind that the model can't have seen."
    value_unit = "nats per token"
    reference = "Shi et al. (2023), arXiv:2310.16789"
    higher_is_better = None
    row_kinds = frozenset({"token"})

    def __init__(self, k: float = 0.2, num_bins: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < k <= 1:
            raise MetricOptionError(f"{self.name}: k is a share of the tokens in (0, 1]; got {k!r}")
        self.k, self.num_bins = float(k), check_num_bins(self.name, num_bins)

    def shared_sums(self) -> Sequence[SharedSum]:
        return NllBins("tokens", self.num_bins), NllBins("nats", self.num_bins)

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        tokens, nats = (sums[each.name] for each in self.shared_sums())
        return -tail_mean(tokens, nats, self.k)
