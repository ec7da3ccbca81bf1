"""What part of the cross entropy miscalibration accounts for, and what part is left: the two add up to `cross_entropy`.

A proper score's expectation is a calibration loss, the divergence of the forecast from the frequencies that it goes with,
plus a refinement loss, the score that those frequencies themselves would get (Bröcker 2009, Kull & Flach 2015). Over a
whole vocabulary the frequencies can't be estimated, so the calibration loss is taken of what can be binned: the forecast
"the top-1 is right, with probability confidence", by bins b of the confidence, as

    Σ_b n_b/N · KL(accuracy_b ‖ confidence_b),   KL(a ‖ c) = a ln a/c + (1 − a) ln (1 − a)/(1 − c)

By the data processing inequality that is, but for sampling error, at most the loss from miscalibration of the whole
distribution; the refinement loss, which is the rest of the cross entropy, is at least that of Kull & Flach. For two
classes and one confidence a bin both are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xent_metrics.metrics.confidence_bins import ConfidenceBins
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import Binned

__all__ = ["CalibrationLoss", "RefinementLoss"]


class CalibrationLoss(ConfidenceBins):
    """Calibration loss = Σ_b n_b/N · KL(accuracy_b ‖ confidence_b), in nats per token: cross entropy lost to miscalibration.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    KL is that of "the top-1 is right" as a yes or no. At least 0; biased upward when bins hold few tokens. Not
    differentiable where all of a bin's predictions are right, or all wrong: its standard error leaves that bin's own out.

    References: Bröcker (2009), arXiv:0806.0813; Kull & Flach (2015), Novel Decompositions of Proper Scoring Rules.

    Raises:
        MetricOptionError: an option has a value that it can't take.

    >>> metric = CalibrationLoss()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # ¾ ln (¾/½) + ¼ ln (¼/½)
    >>> metric.compute()
    tensor(0.1308, dtype=torch.float64)
    """

    name = "calibration_loss"
    formula = "Σ_b n_b/N · KL(accuracy_b ‖ confidence_b)"
    value_unit = "nats per token"
    reference = "Bröcker (2009), arXiv:0806.0813; Kull & Flach (2015)"
    summed = ("tokens", "correct", "doubt")

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        bins = self.bins(sums)
        tokens, right, expected_wrong = (bins[kind] for kind in self.summed)
        wrong, expected_right = tokens - right, tokens - expected_wrong
        nats = _times_log(right, expected_right) + _times_log(wrong, expected_wrong)
        return nats.clamp(min=0).sum() / tokens.sum()


class RefinementLoss(CalibrationLoss):
    """Refinement loss = cross entropy − calibration loss, in nats per token: what recalibrating the confidence can't mend.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    `calibration_loss` with the same options and this add up to `cross_entropy`, by definition. It holds the entropy of
    the accuracies, Σ_b n_b/N · H(accuracy_b), what the confidence says within a bin, and which other class it was.

    References: as for `CalibrationLoss`.

    Raises:
        MetricOptionError: an option has a value that it can't take.

    >>> metric = RefinementLoss()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # two classes: H(¾)
    >>> metric.compute()
    tensor(0.5623, dtype=torch.float64)
    """

    name = "refinement_loss"
    formula = "Σ nll / tokens − Σ_b n_b/N · KL(accuracy_b ‖ confidence_b)"

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        return {**super().sums(scores), "nats": scores.weighted(scores.nll)}

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return sums["nats"] / self.bins(sums)["tokens"].sum() - super().value(sums)


def _times_log(count: Tensor, expected: Tensor) -> Tensor:
    """count · ln(count / expected), with 0 ln 0 = 0 and a gradient of 0 there."""
    none = count <= 0
    ratio = torch.where(none, 1.0, count) / torch.where(none, 1.0, expected)
    return torch.where(none, 0.0, count * torch.log(ratio))
