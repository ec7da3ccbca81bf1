"""Standard errors of any metric over documents, by the delta method on its sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import exact_sum
from ..metric import TokenMetric

__all__ = ["standard_error"]


def standard_error(metric: TokenMetric, states: Tensor) -> float:
    """The standard error of the metric's value when documents are drawn independently; nan for fewer than two.

    The value is a function v of the total sums S = Σ_d s_d, and so to first order its error is that of Σ_d g · s_d with
    g = ∂v/∂S: with r_d = g · (s_d − S/D),  SE² = D/(D − 1) · Σ_d r_d². For a ratio Y/X this is the ratio estimator
    D/(D − 1) · Σ_d (y_d − R x_d)² / X².

    Args:
        metric: gives the value; its own state is not used.
        states: each document's packed sums, int64 ``(D, rows, 8)``, from ``metric.exact_sums(scores)``.

    Reference: Cochran (1977), Sampling Techniques, section 6.3.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> documents = [from_loglikelihoods([-x], unit="token") for x in (1.0, 2.0, 3.0)]
    >>> round(standard_error(metric, torch.stack([metric.exact_sums(d) for d in documents])), 4)   # 1/√3
    0.5774
    """
    documents = len(states)
    if documents < 2:
        return float("nan")
    states = states.cpu()
    per_document = exact_sum.to_float(states)  # (D, rows)
    total = exact_sum.to_float(exact_sum.merge(states)).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(metric.value(metric.unpack(total)), total)
    residual = (per_document - total.detach() / documents) @ gradient
    return float((residual.square().sum() * documents / (documents - 1)).sqrt())
