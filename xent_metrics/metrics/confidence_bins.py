"""Exact sums by bins of the top-1 confidence: what the calibration metrics are views on, and share by name.

Bins of equal width are summed as such. Bins of equal mass depend on all the data, and so can't be: the sums are taken by
256 fixed cells, which add up on any number of processes, and the bins are made of whole cells when the value is taken.
The cells are equally wide in arcsin √confidence, the scale on which an accuracy's sampling error is the same everywhere:
0.006 wide at a confidence of 0.5, and 0.00004 at 0 and 1, where most confidences are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import Binned, TokenMetric

__all__ = ["Binning", "ConfidenceBins", "confidence_bin", "confidence_cell", "equal_mass_bin", "gap"]

Binning = Literal["width", "mass"]
_CELLS = 256


class ConfidenceBins(TokenMetric):
    """A metric of sums by bins of the confidence.

    Args:
        num_bins: M.
        binning: "width", bins ((b − 1)/M, b/M] for b = 1 … M; or "mass", bins of the same number of tokens as nearly as
            whole cells allow.
    """

    requires = frozenset({"nll", "confidence", "correct"})
    summed: ClassVar[tuple[str, ...]] = ("tokens", "confidence", "correct")

    def __init__(self, num_bins: int = 15, binning: Binning = "width", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(num_bins, int) or isinstance(num_bins, bool) or num_bins < 1:
            raise MetricOptionError(f"{self.name}: num_bins is a whole number of at least 1; got {num_bins!r}")
        if binning not in get_args(Binning):
            raise MetricOptionError(f'{self.name}: binning is "width" or "mass"; got {binning!r}')
        self.num_bins = num_bins
        self.binning = binning

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        assert scores.confidence is not None
        if self.binning == "mass":
            bins, count = confidence_cell(scores.confidence), _CELLS
        else:
            bins, count = confidence_bin(scores.confidence, self.num_bins), self.num_bins
        return {
            self._sum_name(kind): Binned(scores.weighted(_values(scores, kind)), bins, count) for kind in self.summed
        }

    def _sum_name(self, kind: str) -> str:
        bins = f"confidence_cells[{_CELLS}]" if self.binning == "mass" else f"confidence_bins[{self.num_bins}]"
        return f"{bins}.{kind}"

    def bins(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums by kind, each ``(num_bins,)`` float64, in the order of the confidence."""
        found = {kind: sums[self._sum_name(kind)] for kind in self.summed}
        if self.binning == "width":
            return found
        index = equal_mass_bin(found["tokens"], self.num_bins)
        return {kind: cells.new_zeros(self.num_bins).index_add(0, index, cells) for kind, cells in found.items()}

    def bin_of(self, confidence: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        """The bin, among those that the sums make, in which each confidence falls."""
        if self.binning == "width":
            return confidence_bin(confidence, self.num_bins)
        return equal_mass_bin(sums[self._sum_name("tokens")], self.num_bins)[confidence_cell(confidence)]


def _values(scores: TokenScores, kind: str) -> Tensor:
    assert scores.confidence is not None
    assert scores.correct is not None
    if kind == "tokens":
        return torch.ones_like(scores.correct, dtype=torch.int64)
    if kind == "doubt":
        return _doubt(scores.confidence, scores.correct, scores.nll)
    return {"confidence": scores.confidence, "correct": scores.correct, "nats": scores.nll}[kind]


def _doubt(confidence: Tensor, correct: Tensor, nll: Tensor) -> Tensor:
    """1 − confidence; where that rounds to 0 beside a target that the top-1 missed, the target's own probability."""
    doubt = 1 - confidence.double()
    return torch.where((doubt == 0) & ~correct, torch.exp(-nll.double()), doubt)


def confidence_bin(confidence: Tensor, num_bins: int) -> Tensor:
    """The index in ``[0, num_bins)`` of the bin (b/M, (b + 1)/M] that holds the confidence; nan goes to bin 0."""
    upper = (confidence.double() * num_bins).ceil().nan_to_num(0.0)
    return (upper.long() - 1).clamp(0, num_bins - 1)


def confidence_cell(confidence: Tensor) -> Tensor:
    """The index in ``[0, 256)`` of the cell, of equal widths in arcsin √confidence; nan goes to cell 0."""
    place = confidence.double().sqrt().asin() * (2 * _CELLS / math.pi)
    return place.nan_to_num(0.0).long().clamp(0, _CELLS - 1)


def equal_mass_bin(tokens: Tensor, num_bins: int) -> Tensor:
    """The bin of each cell: the one in which the cell's middle token falls when all are divided evenly, in order.

    >>> equal_mass_bin(torch.tensor([1.0, 1.0, 0.0, 2.0, 4.0]), 2)
    tensor([0, 0, 0, 0, 1])
    """
    tokens = tokens.detach()
    middle = tokens.cumsum(0) - tokens / 2
    return (middle / tokens.sum() * num_bins).nan_to_num(0.0).long().clamp(0, num_bins - 1)


def gap(bins: Mapping[str, Tensor]) -> Tensor:
    """|accuracy_b − confidence_b|, 0 in an empty bin, ``(num_bins,)``."""
    empty = bins["tokens"] == 0
    size = torch.where(empty, torch.ones_like(bins["tokens"]), bins["tokens"])
    return torch.where(empty, torch.zeros_like(size), (bins["correct"] - bins["confidence"]).abs() / size)
