"""Calibration of the top-1 confidence: is the model right as often as it says it is?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics.confidence_bins import Binning, ConfidenceBins, gap
from xent_metrics.plots import plot_reliability
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import CONFIDENCE, CORRECT, TOKENS, SharedSum

Norm = Literal["l1", "l2", "max"]

__all__ = [
    "ExpectedCalibrationError",
    "MaximumCalibrationError",
    "MeanConfidence",
    "Overconfidence",
    "RMSCalibrationError",
    "root",
]


class _Gaps(ConfidenceBins):
    """Reduces bin gaps to one number; plots reliability."""

    norm: Norm
    higher_is_better = False

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return _error(self.bins(sums), self.norm)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the reliability diagram of everything added, on all processes; with `val`, these values over steps.

        Bins of equal mass have no such diagram: their value is plotted.
        """
        if val is not None or self.binning != "width":
            return super().plot(val, ax)
        with self.over_all_processes():
            self.check_state(self.state.cpu())
            sums = self.totals()
        title = f"{self.name.replace('_', ' ')}: {float(self.value(sums)):.4f}"
        return plot_reliability(self.bins(sums), title, ax)


class ExpectedCalibrationError(_Gaps):
    """Expected calibration error = Σ_b n_b/N · |accuracy_b − confidence_b| over M bins of the top-1 confidence.

    Args:
        num_bins: the number of bins, M.
        binning: "width" for bins (b/M, (b + 1)/M], the last of which holds 1.0; "mass" for bins with equal token counts.
        norm: "l1"; "max" and "l2" give the values of `maximum_calibration_error` and `rms_calibration_error`.
        kwargs: as for `TokenMetric`.

    In [0, 1]. Biased upward when bins hold few tokens. Bins of equal mass are made of 256 cells with fixed bounds, so that
    they merge: a confidence that many tokens share isn't split, and a bin may be empty. The state is then 49 kB, and that
    of a `StandardError` 19 MB.

    References: Guo et al. (2017), arXiv:1706.04599; equal mass: Nguyen & O'Connor (2015), arXiv:1508.05154.

    Raises:
        MetricOptionError: an option has an invalid value.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # confidence 0.5, accuracy 0.75
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    name = "expected_calibration_error"
    formula = "Σ_b n_b/N · |accuracy_b − confidence_b|"
    latex = r"\sum_{b=1}^{M} \frac{n_b}{N} \left|\mathrm{acc}_b - \mathrm{conf}_b\right|"
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "Guo et al. (2017), arXiv:1706.04599"
    use_when = (
        "To see whether the top-1 confidence can be read as the probability of being right, for instance to abstain "
        "or to ask a larger model."
    )
    hides = (
        "Everything but the top-1. Gaps of opposite signs cancel within a bin. The value depends on the bins, and is "
        "too high when they hold few tokens. A model that always predicts the classes' frequencies is calibrated and "
        "useless."
    )

    def __init__(self, num_bins: int = 15, binning: Binning = "width", norm: Norm = "l1", **kwargs: Any) -> None:
        super().__init__(num_bins=num_bins, binning=binning, **kwargs)
        if norm not in get_args(Norm):
            raise MetricOptionError(f'{self.name}: norm is "l1", "l2" or "max"; got {norm!r}')
        self.norm = norm


class MaximumCalibrationError(_Gaps):
    """Maximum calibration error = max_b |accuracy_b − confidence_b| over M bins of the top-1 confidence that hold tokens.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    In [0, 1]; a bin of one token counts as much as any other. Its standard error is that of the bin it comes from.
    Reference: Naeini et al. (2015), Obtaining Well Calibrated Probabilities Using Bayesian Binning.

    Raises:
        MetricOptionError: an option has an invalid value.

    >>> metric = MaximumCalibrationError()
    >>> metric.update(torch.tensor([[9.0, -9], [0, 0]]), torch.tensor([0, 1]))     # sure and right; 0.5 and wrong
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    name = "maximum_calibration_error"
    formula = "max_b |accuracy_b − confidence_b|"
    latex = r"\max_b \left|\mathrm{acc}_b - \mathrm{conf}_b\right|"
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "Naeini et al. (2015)"
    use_when = "Where the worst range of confidence matters more than the average, and every bin holds many tokens."
    hides = "How many tokens the worst bin holds: it may be a single one. More bins give a higher value."
    norm = "max"


class RMSCalibrationError(_Gaps):
    """RMS calibration error = √(Σ_b n_b/N · (accuracy_b − confidence_b)²) over M bins of the top-1 confidence.

    Args:
        num_bins, binning: as for `ExpectedCalibrationError`.

    In [0, 1], never below the expected calibration error. The square root isn't differentiable at 0; the standard error is
    0 there. Reference: Hendrycks et al. (2019), Deep Anomaly Detection with Outlier Exposure,
    arXiv:1812.04606.

    Raises:
        MetricOptionError: an option has an invalid value.

    >>> metric = RMSCalibrationError(num_bins=2)
    >>> metric.update(torch.tensor([[9.0, -9], [0, 0]]), torch.tensor([0, 1]))     # √(0²/2 + 0.5²/2)
    >>> metric.compute()
    tensor(0.3536, dtype=torch.float64)
    """

    name = "rms_calibration_error"
    formula = "√(Σ_b n_b/N · (accuracy_b − confidence_b)²)"
    latex = r"\sqrt{\sum_{b=1}^{M} \frac{n_b}{N} \left(\mathrm{acc}_b - \mathrm{conf}_b\right)^2}"
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "Hendrycks et al. (2019), arXiv:1812.04606"
    use_when = "As the expected calibration error, where large gaps should count more than many small ones."
    hides = "All that the expected calibration error hides."
    norm = "l2"


class MeanConfidence(RatioMetric):
    """Mean confidence = Σ max_v p_v / N: the mean top-1 probability, in [1/V, 1].

    How sure the model is, whatever the target. Beside the accuracy it says whether that is too sure (`Overconfidence`).
    Over a generated text (``over: generated`` in lm-eval) it needs no target at all. Reference: Guo et al. (2017), On
    calibration of modern neural networks, arXiv:1706.04599, section 2, there of each bin.

    >>> metric = MeanConfidence()
    >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([0, 1]))     # confidences 0.5 and 1
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    name = "mean_confidence"
    formula = "Σ confidence / tokens"
    latex = r"\frac{1}{N} \sum_t \max_v p_t(v)"
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "Guo et al. (2017), arXiv:1706.04599, section 2"
    use_when = "To see how sure a model is of what it says, of generated text in particular, beside its accuracy."
    hides = "Whether it is right to be sure: no target enters. A model that is sure of everything has the best value."
    requires = frozenset({"confidence"})
    higher_is_better = None

    def sum_names(self) -> tuple[SharedSum, SharedSum]:
        return CONFIDENCE, TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        assert scores.confidence is not None
        return scores.confidence


class Overconfidence(TokenMetric):
    """Overconfidence = (Σ confidence − Σ [argmax p = target]) / N: mean top-1 confidence minus accuracy, in [−1, 1].

    Positive for an overconfident model, negative for an underconfident one. 0 doesn't mean calibrated, since errors of
    opposite signs cancel. Its absolute value is at most the expected calibration error, for any bins.

    Reference: Lichtenstein, Fischhoff and Phillips (1982), Calibration of probabilities: the state of the art to 1980.

    >>> metric = Overconfidence()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # confidence 0.5, accuracy 0.75
    >>> metric.compute()
    tensor(-0.2500, dtype=torch.float64)
    """

    name = "overconfidence"
    formula = "(Σ confidence − Σ [argmax p = target]) / tokens"
    latex = r"\frac{1}{N} \sum_t \left(\max_v p_t(v) - \left[\operatorname{argmax}_v p_t(v) = y_t\right]\right)"
    value_unit = "probability"
    value_range = (-1.0, 1.0)
    reference = "Lichtenstein et al. (1982), Calibration of probabilities: the state of the art to 1980"
    use_when = "To know the direction of miscalibration, which the calibration errors leave out."
    hides = "Gaps of opposite signs cancel: 0 doesn't mean calibrated."
    requires = frozenset({"confidence", "correct"})
    higher_is_better = None

    def shared_sums(self) -> Sequence[SharedSum]:
        return CONFIDENCE, CORRECT, TOKENS

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return (sums["confidence"] - sums["correct"]) / sums["tokens"]


def _error(bins: Mapping[str, Tensor], norm: Norm) -> Tensor:
    """The bin gaps reduced to one number; nan if nothing counted."""
    share = bins["tokens"] / bins["tokens"].sum()  # n_b/N, (num_bins,)
    if norm == "max":
        return gap(bins).max() + 0 * share.sum()
    if norm == "l1":
        return (share * gap(bins)).sum()
    return root((share * gap(bins) ** 2).sum())


def root(square: Tensor) -> Tensor:
    """√square, with a gradient of 0 at 0 in place of infinity."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
