"""The cross entropy, split into a part due to miscalibration and the rest: the two add up to `cross_entropy`.

The expectation of a proper score is a calibration loss, the divergence of the forecasts from the observed frequencies, plus
a refinement loss, the score that those frequencies themselves would get (Bröcker 2009, Kull & Flach 2015). The frequencies
of a whole vocabulary can't be estimated. The calibration loss is therefore taken of a forecast that can be binned, "the
top-1 is right, with probability confidence", over bins b of the confidence:

    Σ_b n_b/N · KL(accuracy_b ‖ confidence_b),   KL(a ‖ c) = a ln a/c + (1 − a) ln (1 − a)/(1 − c)

By the data processing inequality this is, up to sampling error, at most the loss from miscalibration of the whole
distribution; the refinement loss, the rest of the cross entropy, is at least that of Kull & Flach. For two classes and one
confidence per bin both equal theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xent_metrics.metrics.confidence_bins import ConfidenceBins
from xent_metrics.sums.shared_sums import NATS, SharedSum

__all__ = ["CalibrationLoss", "RefinementLoss"]


class CalibrationLoss(ConfidenceBins):
    """Calibration loss = Σ_b n_b/N · KL(accuracy_b ‖ confidence_b), in nats per token: cross entropy lost to miscalibration.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    KL is that of the event "the top-1 is right". At least 0; biased upward when bins hold few tokens. Not differentiable
    if all of a bin's predictions are right, or all wrong: the standard error leaves out such a bin's contribution.

    References: Bröcker (2009), arXiv:0806.0813; Kull & Flach (2015), Novel Decompositions of Proper Scoring Rules.

    Raises:
        MetricOptionError: an option has an invalid value.

    >>> metric = CalibrationLoss()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # ¾ ln (¾/½) + ¼ ln (¼/½)
    >>> metric.compute()
    tensor(0.1308, dtype=torch.float64)
    """

    name = "calibration_loss"
    higher_is_better = False
    formula = "Σ_b n_b/N · KL(accuracy_b ‖ confidence_b)"
    latex = (
        r"\sum_{b=1}^{M} \frac{n_b}{N} \left[\mathrm{acc}_b \ln \frac{\mathrm{acc}_b}{\mathrm{conf}_b} + (1 - "
        r"\mathrm{acc}_b) \ln \frac{1 - \mathrm{acc}_b}{1 - \mathrm{conf}_b}\right]"
    )
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Bröcker (2009), arXiv:0806.0813; Kull & Flach (2015)"
    use_when = (
        "To see in nats how much of the cross entropy is due to miscalibration of the top-1, beside refinement_loss."
    )
    hides = (
        "Miscalibration of the other classes, and within a bin: it is a lower bound, up to sampling error. It is too "
        "high when bins hold few tokens."
    )
    summed = ("tokens", "correct", "doubt")

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        bins = self.bins(sums)
        tokens, right, expected_wrong = (bins[kind] for kind in self.summed)
        wrong, expected_right = tokens - right, tokens - expected_wrong
        nats = _times_log(right, expected_right) + _times_log(wrong, expected_wrong)
        return nats.clamp(min=0).sum() / tokens.sum()


class RefinementLoss(CalibrationLoss):
    """Refinement loss = cross entropy − calibration loss, in nats per token: what recalibration can't remove.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    With `calibration_loss` of the same options it adds up to `cross_entropy`, by definition. It contains the entropy of
    the accuracies, Σ_b n_b/N · H(accuracy_b), the spread of the confidence within a bin, and which wrong class it was.

    References: as for `CalibrationLoss`.

    Raises:
        MetricOptionError: an option has an invalid value.

    >>> metric = RefinementLoss()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # two classes: H(¾)
    >>> metric.compute()
    tensor(0.5623, dtype=torch.float64)
    """

    name = "refinement_loss"
    formula = "Σ nll / tokens − Σ_b n_b/N · KL(accuracy_b ‖ confidence_b)"
    latex = (
        r"-\frac{1}{N} \sum_t \ln p_t(y_t) - \sum_{b=1}^{M} \frac{n_b}{N} \left[\mathrm{acc}_b \ln "
        r"\frac{\mathrm{acc}_b}{\mathrm{conf}_b} + (1 - \mathrm{acc}_b) \ln \frac{1 - \mathrm{acc}_b}{1 - "
        r"\mathrm{conf}_b}\right]"
    )
    use_when = "To compare models by what recalibrating them can't remove."
    hides = "It is what is left: miscalibration that the binned top-1 confidence doesn't show is counted here."

    def shared_sums(self) -> Sequence[SharedSum]:
        return [*super().shared_sums(), NATS]

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return sums[NATS.name] / self.bins(sums)["tokens"].sum() - super().value(sums)


def _times_log(count: Tensor, expected: Tensor) -> Tensor:
    """count · ln(count / expected), with 0 ln 0 = 0 and a gradient of 0 there."""
    none = count <= 0
    ratio = torch.where(none, 1.0, count) / torch.where(none, 1.0, expected)
    return torch.where(none, 0.0, count * torch.log(ratio))
