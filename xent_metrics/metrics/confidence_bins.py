"""Exact sums by bins of the top-1 confidence, which the calibration metrics read and share.

Bins of equal width are summed as such. Bins of equal mass depend on all the data, so the sums are taken over 256 fixed
cells, which add up on any number of processes, and the bins are made of whole cells when the value is computed. The cells
have equal widths in arcsin √confidence, the scale on which an accuracy has the same sampling error everywhere: they are
0.006 wide at a confidence of 0.5, and 0.00004 at 0 and 1, where most confidences are.

Places are found in float64. On a device without it, a confidence within a rounding of float32 of a bound may fall into the
next bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics.running_sum import running_sum
from xent_metrics.scoring.devices import widest_float
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.shared_sums import SharedSum, remember
from xent_metrics.sums.terms import Binned

__all__ = [
    "CELLS", "BinSum", "Binning", "ConfidenceBins", "check_num_bins", "confidence_bin", "confidence_cell",
    "equal_mass_bin", "gap",
]  # fmt: skip

Binning = Literal["width", "mass"]
#: How many cells bins of equal mass are made of.
CELLS = 256
_MOST_BINS = 2**20  # the state of three kinds of sums is 192 MiB then


@dataclass(frozen=True)
class BinSum(SharedSum):
    """One kind of value, summed by bins of the confidence: tokens, confidence, correct, nats or doubt."""

    kind: str
    binning: Binning
    num_bins: int  # of width; the number of cells for bins of equal mass

    @property
    def name(self) -> str:
        return f"confidence_{'cells' if self.binning == 'mass' else 'bins'}[{self.num_bins}].{self.kind}"

    def terms(self, scores: TokenScores) -> Binned:
        key = f"{__name__}: {self.binning} {self.num_bins}"
        bins = remember(scores, key, lambda: self._bins(scores))
        return Binned(scores.weighted(_values(scores, self.kind)), bins, self.num_bins)

    def _bins(self, scores: TokenScores) -> Tensor:
        assert scores.confidence is not None
        if self.binning == "mass":
            return confidence_cell(scores.confidence)
        return confidence_bin(scores.confidence, self.num_bins)


class ConfidenceBins(TokenMetric):
    """The base of metrics of sums by bins of the confidence.

    Args:
        num_bins: the number of bins, M.
        binning: "width" for bins (b/M, (b + 1)/M]; "mass" for bins that hold the same number of tokens, as
            nearly as whole cells allow.
        kwargs: as for `TokenMetric`.
    """

    requires = frozenset({"nll", "confidence", "correct"})
    summed: ClassVar[tuple[str, ...]] = ("tokens", "confidence", "correct")

    def __init__(self, num_bins: int = 15, binning: Binning = "width", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = check_num_bins(self.name, num_bins)
        if binning not in get_args(Binning):
            raise MetricOptionError(f'{self.name}: binning is "width" or "mass"; got {binning!r}')
        self.binning = binning

    def shared_sums(self) -> Sequence[SharedSum]:
        return [self._sum(kind) for kind in self.summed]

    def _sum(self, kind: str) -> BinSum:
        return BinSum(kind, self.binning, CELLS if self.binning == "mass" else self.num_bins)

    def bins(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums by kind, each ``(num_bins,)`` float64, in the order of the confidence."""
        found = {kind: sums[self._sum(kind).name] for kind in self.summed}
        if self.binning == "width":
            return found
        index = equal_mass_bin(found["tokens"], self.num_bins)
        return {kind: cells.new_zeros(self.num_bins).index_add(0, index, cells) for kind, cells in found.items()}

    def bin_of(self, confidence: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        """The bin of each confidence, among the bins that the sums make."""
        if self.binning == "width":
            return confidence_bin(confidence, self.num_bins)
        return equal_mass_bin(sums[self._sum("tokens").name], self.num_bins)[confidence_cell(confidence)]


def check_num_bins(metric: str, num_bins: Any) -> int:
    """Return `num_bins` if it is a number of bins.

    Raises:
        MetricOptionError: it is not a whole number from 1 to 1,048,576.
    """
    if not isinstance(num_bins, int) or isinstance(num_bins, bool) or not 1 <= num_bins <= _MOST_BINS:
        raise MetricOptionError(f"{metric}: num_bins is a whole number from 1 to {_MOST_BINS:,}; got {num_bins!r}")
    return num_bins


def _values(scores: TokenScores, kind: str) -> Tensor:
    assert scores.confidence is not None
    assert scores.correct is not None
    if kind == "tokens":
        return torch.ones_like(scores.correct, dtype=torch.float32)
    if kind == "doubt":
        return _doubt(scores.confidence, scores.correct, scores.nll)
    return {"confidence": scores.confidence, "correct": scores.correct, "nats": scores.nll}[kind]


def _doubt(confidence: Tensor, correct: Tensor, nll: Tensor) -> Tensor:
    """1 − confidence; the target's own probability if that rounds to 0 and the top-1 isn't the target."""
    doubt, nll = 1 - _wide(confidence), _wide(nll)
    return torch.where((doubt == 0) & ~correct, torch.exp(-nll), doubt)


def _wide(values: Tensor) -> Tensor:
    return values.to(widest_float(values.device))


def confidence_bin(confidence: Tensor, num_bins: int) -> Tensor:
    """The index in ``[0, num_bins)`` of the bin (b/M, (b + 1)/M] that holds the confidence; nan goes to bin 0."""
    upper = (_wide(confidence) * num_bins).ceil().nan_to_num(0.0)
    return (upper.long() - 1).clamp(0, num_bins - 1)


def confidence_cell(confidence: Tensor) -> Tensor:
    """The index in ``[0, 256)`` of the cell, of equal widths in arcsin √confidence; nan goes to cell 0."""
    place = _wide(confidence).sqrt().asin() * (2 * CELLS / math.pi)
    return place.nan_to_num(0.0).long().clamp(0, CELLS - 1)


def equal_mass_bin(tokens: Tensor, num_bins: int) -> Tensor:
    """The bin of each cell: the one that its middle token falls into when all tokens are divided evenly, in order.

    >>> equal_mass_bin(torch.tensor([1.0, 1.0, 0.0, 2.0, 4.0]), 2)
    tensor([0, 0, 0, 0, 1])
    """
    tokens = tokens.detach()
    middle = running_sum(tokens) - tokens / 2
    return (middle / tokens.sum() * num_bins).nan_to_num(0.0).long().clamp(0, num_bins - 1)


def gap(bins: Mapping[str, Tensor]) -> Tensor:
    """|accuracy_b − confidence_b|, 0 in an empty bin, ``(num_bins,)``."""
    empty = bins["tokens"] == 0
    size = torch.where(empty, torch.ones_like(bins["tokens"]), bins["tokens"])
    return torch.where(empty, torch.zeros_like(size), (bins["correct"] - bins["confidence"]).abs() / size)
