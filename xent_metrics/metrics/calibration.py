"""Calibration of the top-1 confidence, from binned exact sums: mergeable, and a few hundred integers in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidInputError, MetricOptionError
from ..metric import Binned, TokenMetric
from ..scores import TokenScores

__all__ = ["CalibrationWeightedCrossEntropy", "ExpectedCalibrationError"]


class _ConfidenceBins(TokenMetric):
    """Sums by equal-width bins of the confidence, ((b − 1)/M, b/M] for b = 1 … M."""

    requires = frozenset({"nll", "confidence", "correct"})
    _summed: tuple[str, ...] = ("tokens", "confidence", "correct")

    def __init__(self, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(num_bins, int) or isinstance(num_bins, bool) or num_bins < 1:
            raise MetricOptionError(f"{self.name}: num_bins is a whole number of at least 1; got {num_bins!r}")
        self.num_bins = num_bins

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        assert scores.confidence is not None
        assert scores.correct is not None
        values = {
            "tokens": torch.ones_like(scores.correct, dtype=torch.int64),
            "confidence": scores.confidence,
            "correct": scores.correct,
            "nats": scores.nll,
        }
        bins = confidence_bin(scores.confidence, self.num_bins)
        return {
            self._sum_name(kind): Binned(scores.weighted(values[kind]), bins, self.num_bins) for kind in self._summed
        }

    def _sum_name(self, kind: str) -> str:
        return f"confidence_bins[{self.num_bins}].{kind}"

    def _bins(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums by kind, each ``(num_bins,)`` float64."""
        return {kind: sums[self._sum_name(kind)] for kind in self._summed}


def confidence_bin(confidence: Tensor, num_bins: int) -> Tensor:
    """The index in ``[0, num_bins)`` of the bin (b/M, (b + 1)/M] that holds the confidence; nan goes to bin 0."""
    upper = (confidence.double() * num_bins).ceil().nan_to_num(0.0)
    return (upper.long() - 1).clamp(0, num_bins - 1)


class ExpectedCalibrationError(_ConfidenceBins):
    """Expected calibration error = Σ_b n_b/N · |accuracy_b − confidence_b| over M equal-width bins of the top-1 confidence.

    Args:
        num_bins: M.
        norm: "l1", the expected error; "l2", the root of the mean square; "max", the largest error of any bin.

    A share in [0, 1]. Bins are (b/M, (b + 1)/M], the last one with 1.0 in it. Biased upward when bins hold few tokens.
    Reference: Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # confidence 0.5, accuracy 0.75
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    name = "expected_calibration_error"
    formula = "Σ_b n_b/N · |accuracy_b − confidence_b|"
    value_unit = "probability"
    reference = "Guo et al. (2017), arXiv:1706.04599"

    def __init__(self, num_bins: int = 15, norm: Literal["l1", "l2", "max"] = "l1", **kwargs: Any) -> None:
        super().__init__(num_bins=num_bins, **kwargs)
        if norm not in ("l1", "l2", "max"):
            raise MetricOptionError(f'{self.name}: norm is "l1", "l2" or "max"; got {norm!r}')
        self.norm = norm

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        bins = self._bins(sums)
        gap = _gap(bins)
        share = bins["tokens"] / bins["tokens"].sum()  # nan where nothing counted, and so is the value
        if self.norm == "max":
            return gap.max() + 0 * share.sum()
        if self.norm == "l2":
            return (share * gap**2).sum().sqrt()
        return (share * gap).sum()


class CalibrationWeightedCrossEntropy(_ConfidenceBins):
    """Cross entropy in which nll counts more where the model is miscalibrated, in nats per token.

    With M equal-width bins of the top-1 confidence: gap_b = |accuracy_b − confidence_b|, weight_b = 1 + λ · gap_b, and

        value = Σ_b weight_b · Σnll_b / Σ_b weight_b · n_b

    Args:
        strength: λ ≥ 0; 0 is the cross entropy.
        num_bins: M.

    Defined on binned sums, so it is exact and mergeable. `loss` is the differentiable form for training steps.

    >>> metric = CalibrationWeightedCrossEntropy(strength=0.0)
    >>> metric.update(torch.zeros(2, 8), torch.tensor([1, 2]))
    >>> metric.compute()        # ln 8
    tensor(2.0794, dtype=torch.float64)
    """

    name = "calibration_weighted_cross_entropy"
    formula = "Σ_b w_b Σnll_b / Σ_b w_b n_b, w_b = 1 + λ |accuracy_b − confidence_b|"
    value_unit = "nats per token"
    _summed = ("tokens", "confidence", "correct", "nats")

    def __init__(self, strength: float = 1.0, num_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(num_bins=num_bins, **kwargs)
        if not strength >= 0:
            raise MetricOptionError(f"{self.name}: strength is at least 0; got {strength!r}")
        self.strength = strength

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        bins = self._bins(sums)
        weight = 1 + self.strength * _gap(bins)
        return (weight * bins["nats"]).sum() / (weight * bins["tokens"]).sum()

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The differentiable form: the batch's nll weighted by bin, with weights from the running state, detached.

        Gradients flow through the nll alone. The state is not changed: call `update` as well, before or after. An empty
        state weighs every token 1, which is the cross entropy.

        >>> metric = CalibrationWeightedCrossEntropy()
        >>> metric.loss(torch.zeros(2, 8, requires_grad=True), torch.tensor([1, 2]))
        tensor(2.0794, grad_fn=<DivBackward0>)
        """
        if target.shape != logits.shape[:-1]:
            raise InvalidInputError(
                f"expected one target a row of logits, {tuple(logits.shape[:-1])}; got {tuple(target.shape)}"
            )
        rows = logits.reshape(-1, logits.shape[-1])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        target = target.reshape(-1).long()
        nll = F.cross_entropy(rows, target, ignore_index=self.ignore_index, reduction="none")
        weight = torch.where(target == self.ignore_index, 0.0, self._running_weight(rows.detach()).to(nll.dtype))
        return (weight * nll).sum() / weight.sum()

    @torch.no_grad()
    def _running_weight(self, rows: Tensor) -> Tensor:
        from ..exact_sum import to_float

        weight = 1 + self.strength * _gap(self._bins(self.unpack(to_float(self.state, finite_only=True))))
        confidence = torch.softmax(rows, dim=-1).amax(dim=-1)
        return weight.to(rows.device)[confidence_bin(confidence, self.num_bins)]


def _gap(bins: Mapping[str, Tensor]) -> Tensor:
    """|accuracy_b − confidence_b|, 0 in an empty bin, ``(num_bins,)``."""
    empty = bins["tokens"] == 0
    size = torch.where(empty, torch.ones_like(bins["tokens"]), bins["tokens"])
    return torch.where(empty, torch.zeros_like(size), (bins["correct"] - bins["confidence"]).abs() / size)
