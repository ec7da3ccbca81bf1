"""Cross entropy that counts more where the model is miscalibrated, as a metric and as a training loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.metrics.confidence_bins import ConfidenceBins, gap
from xent_metrics.scoring.inputs import as_tensor, check_logits, check_target
from xent_metrics.sums.exact_sum import to_float

__all__ = ["CalibrationWeightedCrossEntropy"]

_NOT_SCORED = -100  # torch's cross entropy gives such rows no loss and no gradient


class CalibrationWeightedCrossEntropy(ConfidenceBins):
    """Cross entropy in which nll counts more where the model is miscalibrated, in nats per token.

    With M bins of the top-1 confidence: gap_b = |accuracy_b − confidence_b|, weight_b = 1 + λ · gap_b, and

        value = Σ_b weight_b · Σnll_b / Σ_b weight_b · n_b

    Args:
        strength: λ ≥ 0; 0 is the cross entropy.
        kwargs: `num_bins` and `binning` as for `ExpectedCalibrationError`, and as for `TokenMetric`.

    Defined on binned sums, so it is exact and mergeable. `loss` is the differentiable form for training steps.
    Reference: this package's own; the gaps are those of Guo et al. (2017), arXiv:1706.04599.

    Raises:
        MetricOptionError: `strength` is negative, or another option has an invalid value.

    >>> metric = CalibrationWeightedCrossEntropy(strength=0.0)
    >>> metric.update(torch.zeros(2, 8), torch.tensor([1, 2]))
    >>> metric.compute()        # ln 8
    tensor(2.0794, dtype=torch.float64)
    """

    name = "calibration_weighted_cross_entropy"
    higher_is_better = False
    formula = "Σ_b w_b Σnll_b / Σ_b w_b n_b, w_b = 1 + λ |accuracy_b − confidence_b|"
    latex = (
        r"\frac{\sum_b w_b \sum_{t \in b} -\ln p_t(y_t)}{\sum_b w_b n_b}, \quad w_b = 1 + \lambda \left|\mathrm{acc}_b"
        r" - \mathrm{conf}_b\right|"
    )
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "xent-metrics; the gaps are those of Guo et al. (2017), arXiv:1706.04599"
    use_when = "To have loss and calibration in one number, and to train with the same weights (its method loss)."
    hides = (
        "It is no proper score: a gap in a bin with less than the mean nll lowers the value. Models with the same "
        "value may differ in loss and in calibration, so look at cross_entropy and expected_calibration_error, too."
    )
    summed = ("tokens", "confidence", "correct", "nats")

    def __init__(self, strength: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not strength >= 0:
            raise MetricOptionError(f"{self.name}: strength is at least 0; got {strength!r}")
        self.strength = strength

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        bins = self.bins(sums)
        weight = 1 + self.strength * gap(bins)
        return (weight * bins["nats"]).sum() / (weight * bins["tokens"]).sum()

    def loss(self, logits: Any, target: Any) -> Tensor:
        """The differentiable form for training: the batch's nll, weighted by bin with the running state's weights.

        The weights are detached, so gradients flow through the nll alone. The state doesn't change: call `update` as well,
        before or after. With an empty state every weight is 1, which gives the cross entropy. nan if a target is out of
        range.

        Args:
            logits: ``(…, V)``.
            target: ``(…)``, integers.

        Raises:
            InvalidInputError: shapes or dtypes that don't match, or targets that are distributions.

        >>> metric = CalibrationWeightedCrossEntropy()
        >>> metric.loss(torch.zeros(2, 8, requires_grad=True), torch.tensor([1, 2]))
        tensor(2.0794, grad_fn=<DivBackward0>)
        """
        logits = logits if isinstance(logits, Tensor) else as_tensor(logits)  # as_tensor would detach a tensor
        shape, vocab_size = check_logits(logits).shape[:-1], logits.shape[-1]
        target = as_tensor(target).to(logits.device)
        index, _, counted, invalid = check_target(target, shape, vocab_size, self.ignore_index)
        if index is None:
            raise InvalidInputError(f"{self.name}.loss needs integer targets; got {target.dtype}")
        rows = logits.reshape(-1, vocab_size)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        scored = torch.where(counted & ~invalid, index, _NOT_SCORED)
        nll = F.cross_entropy(rows, scored, ignore_index=_NOT_SCORED, reduction="none")
        nll = torch.where(invalid, torch.nan, nll)
        weight = torch.where(counted, self._running_weight(rows.detach()).to(nll.dtype), 0.0)
        return (weight * nll).sum() / weight.sum()

    @torch.no_grad()
    def _running_weight(self, rows: Tensor) -> Tensor:
        sums = self.unpack(to_float(self.state.to(rows.device), finite_only=True))
        weight = 1 + self.strength * gap(self.bins(sums))
        return weight[self.bin_of(torch.softmax(rows, dim=-1).amax(dim=-1), sums)]
