"""Standard errors of any metric over independent samples (documents, sequences), by the delta method on its sums.

Two routes to the same number: `standard_error` from each document's own sums, where a host keeps them, and the metric
`StandardError` from sums of products, where it can't: a constant number of exact sums, merged like any metric's state.

A metric's value is a function v of its total sums S = Σ_d s_d, so that to first order its error is that of Σ_d g · s_d
with g = ∂v/∂S. Over D samples SE² = D/(D − 1) · Σ_d (g · (s_d − S/D))² = D/(D − 1) · (gᵀ M g − (g · S)²/D) with
M = Σ_d s_d s_dᵀ. For a ratio R = Y/X it is the ratio estimator D/(D − 1) · Σ_d (y_d − R x_d)² / X².

Reference: Cochran (1977), Sampling Techniques, section 6.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.plugins import as_metric
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import _COUNTS, Binned, TokenMetric
from xent_metrics.wrappers.grouped import Grouped

__all__ = ["StandardError", "gradient_of", "is_sample", "standard_error", "standard_error_from_moments"]


def standard_error(metric: TokenMetric, states: Tensor) -> float:
    """The standard error of the metric's value when documents are drawn independently; nan for fewer than two.

    Args:
        metric: gives the value; its own state is not used.
        states: each document's packed sums, int64 ``(D, rows, 8)``, from ``metric.exact_sums(scores)``, in any order.

    A document of which no row counts is not a sample. nan too for a metric without `has_standard_error`.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> documents = [from_loglikelihoods([-x], row_kind="token") for x in (1.0, 2.0, 3.0)]
    >>> round(standard_error(metric, torch.stack([metric.exact_sums(d) for d in documents])), 4)   # 1/√3
    0.5774
    """
    states = states.cpu()
    states = states[is_sample(states)]
    documents = len(states)
    if documents < 2 or not metric.has_standard_error:
        return float("nan")
    total = exact_sum.to_float(exact_sum.merge(states))
    gradient = gradient_of(lambda sums: metric.value(metric.unpack(sums)), total)
    residual = ((exact_sum.to_float(states) - total / documents) * gradient).sum(dim=-1)  # each row by itself
    return math.sqrt(math.fsum(residual.square().tolist()) * documents / (documents - 1))


def is_sample(states: Tensor) -> Tensor:
    """Which documents' packed sums, ``(D, rows, 8)``, hold anything but ignored rows, ``(D,)``."""
    not_empty = states.any(dim=-1)  # (D, rows)
    not_empty[:, _COUNTS.index("ignored")] = False
    return not_empty.any(dim=-1)


def standard_error_from_moments(
    value: Callable[[Tensor], Tensor], total: Tensor, products: Tensor, samples: Tensor
) -> Tensor:
    """The same standard error from sums alone, a 0-d float64; nan for fewer than two samples.

    The two terms cancel where all samples have nearly one value, so that what is left below some 1e-8 of the value is
    the products' rounding.

    Args:
        value: the metric as a function of its sums, ``(R,)`` float64 to 0-d.
        total: S = Σ_d s_d, ``(R,)`` float64.
        products: M = Σ_d s_d s_dᵀ, ``(R, R)`` float64.
        samples: D, 0-d.

    >>> y, x = torch.tensor([1.0, 2.0, 3.0]).double(), torch.ones(3).double()
    >>> rows = torch.stack([y, x], dim=1)
    >>> standard_error_from_moments(lambda s: s[0] / s[1], rows.sum(0), rows.T @ rows, torch.tensor(3.0))   # 1/√3
    tensor(0.5774, dtype=torch.float64)
    """
    gradient = gradient_of(value, total)
    square = gradient @ products @ gradient - (gradient @ total).square() / samples
    error = (square.clamp(min=0.0) * samples / (samples - 1)).sqrt()
    return torch.where((samples > 1) & total.isfinite().all(), error, torch.nan)


def gradient_of(value: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
    """∂value/∂sums at `total`, ``(R,)``."""
    with torch.inference_mode(False), torch.enable_grad():  # Lightning validates in inference mode
        sums = total.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(sums), sums)
    return gradient


class StandardError(TokenMetric):
    """The standard error of another metric's value over the sequences that were added, in that metric's unit.

    The first dimension of the scores counts the sequences, taken to be independent of each other: ``(B, T)`` are B
    sequences, ``(N,)`` are N rows, each a sample of its own. A sequence of which no row counts is not a sample.

    Args:
        metric: whose value it is the error of, or its registered name; its own state is not used.

    The state holds the metric's sums, the sums of all products of two of them, and the number of sequences: a ratio
    takes 9 rows of 8 integers, 15 bins of three kinds 1,084. It merges, syncs and resumes as every metric does.

    Raises:
        MetricOptionError: the metric's value has no slope in its sums, and so no error by the delta method.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> error = StandardError(CrossEntropy())
    >>> error.update(from_loglikelihoods([-1.0, -2.0, -3.0], row_kind="token"))
    >>> error.compute()     # 1/√3
    tensor(0.5774, dtype=torch.float64)
    """

    name = "standard_error"
    formula = "√(D/(D − 1) · (gᵀ M g − (g · S)²/D))"
    value_unit = "the metric's unit"
    reference = "Cochran (1977), Sampling Techniques, section 6.3"
    metric: TokenMetric

    def __init__(self, metric: TokenMetric | str, **kwargs: Any) -> None:
        metric = as_metric(metric)
        if not metric.has_standard_error:
            raise MetricOptionError(
                f"{metric.name} is a step function of its sums, of which the delta method knows no error. Keep each "
                "document's sums (metric.exact_sums) and give them to xent_metrics.analysis.bootstrap"
            )
        super().__init__(ignore_index=metric.ignore_index, **kwargs)
        self.name = f"{metric.name}_stderr"  # type: ignore[misc]
        self.value_unit = metric.value_unit
        self.requires = metric.requires
        self.row_kinds = metric.row_kinds  # type: ignore[misc]
        self.metric = copy.deepcopy(metric)

    def scoring_options(self) -> dict[str, Any]:
        return self.metric.scoring_options()

    def score(self, *batch: Any, **options: Any) -> TokenScores:
        """As the metric scores: what it takes, a pair of logits for one, this takes."""
        return self.metric.score(*batch, **options)

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return self.metric.extra_scores()

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        own = self.metric.sums(scores)
        rows = torch.cat([_by_sequence(scores, name, value) for name, value in own.items()], dim=1)  # (B, R)
        first, second = torch.triu_indices(rows.shape[1], rows.shape[1], device=rows.device)
        products = rows.index_select(1, first) * rows.index_select(1, second)  # (B, R (R + 1) / 2)
        pairs = torch.arange(len(first), device=rows.device).expand_as(products)
        return {
            **own,
            f"products[{', '.join(own)}]": Binned(products, pairs, len(first)),
            "sequences": _sequences(scores),
        }

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return self._error(self.metric.value, sums)

    def by_group(self) -> dict[str, Tensor]:
        """Each group's standard error over all sequences that were added, by label, where the metric is a `Grouped`.

        On this process; over all of them inside ``with metric.sync_context():``.

        >>> from xent_metrics import CrossEntropy, Grouped, Position, score_tokens
        >>> error = StandardError(Grouped(CrossEntropy(), by=Position([0, 1])))
        >>> error.update(score_tokens(torch.randn(9, 5, 7), torch.zeros(9, 5, dtype=torch.long)))
        >>> list(error.by_group())
        ['0', '1+']
        """
        grouped = self.metric
        if not isinstance(grouped, Grouped):
            raise MetricOptionError(f"{grouped.name} has no groups; expected StandardError(Grouped(metric, …))")
        sums = self.unpack(exact_sum.to_float(self.state))
        return {
            label: self._error(partial(grouped.value_of_group, group=group), sums)
            for group, label in enumerate(grouped.grouping.labels)
        }

    def _error(self, value: Callable[[Mapping[str, Tensor]], Tensor], sums: Mapping[str, Tensor]) -> Tensor:
        """The error of a function of the metric's sums."""
        *own, products, samples = sums.values()
        total = torch.cat([rows.reshape(-1) for rows in own])
        names, sizes = list(sums)[: len(own)], [rows.numel() for rows in own]

        def of_rows(rows: Tensor) -> Tensor:
            parts = zip(names, own, torch.split(rows, sizes), strict=True)
            return value({name: part.reshape(like.shape) for name, like, part in parts})

        return standard_error_from_moments(of_rows, total, _symmetric(products, len(total)), samples)


def _by_sequence(scores: TokenScores, name: str, value: Tensor | Binned) -> Tensor:
    """Each sequence's own sums, ``(B, 1)`` or ``(B, num_bins)`` float64, exact until the last rounding; taken once."""
    key = f"{name} by sequence"
    if key not in scores.sums:
        count, _ = _shape(scores)
        num_bins = value.num_bins if isinstance(value, Binned) else 1
        values, bins = (value.values, value.bins.reshape(-1)) if isinstance(value, Binned) else (value, 0)
        each = values.numel() // max(count, 1)  # a row may have several values
        first_bin = torch.arange(count, device=scores.device).repeat_interleave(each) * num_bins
        rows = exact_sum.exact_sum_by_bin(values, first_bin + bins, count * num_bins)
        scores.sums[key] = exact_sum.to_float(rows, finite_only=True).reshape(count, num_bins)  # the total has the nan
    return scores.sums[key]


def _shape(scores: TokenScores) -> tuple[int, int]:
    """How many sequences, and how many rows in each."""
    count = scores.nll.shape[0] if scores.nll.ndim else 1
    return count, scores.num_rows // max(count, 1)


def _sequences(scores: TokenScores) -> Tensor:
    """Whether each sequence is a sample: some row of it counts, with a weight, and isn't broken, ``(B,)``."""
    counted = scores.counted & ~scores.broken
    counted = counted if scores.weight is None else counted & (scores.weight != 0)
    return counted.reshape(_shape(scores)).any(dim=1)


def _symmetric(upper: Tensor, size: int) -> Tensor:
    """The symmetric matrix ``(size, size)`` of its upper triangle, row by row."""
    first, second = torch.triu_indices(size, size, device=upper.device)
    matrix = torch.zeros(size, size, dtype=upper.dtype, device=upper.device)
    matrix[first, second] = upper
    matrix[second, first] = upper
    return matrix
