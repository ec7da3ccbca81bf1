"""Standard errors of any metric over independent samples (documents, sequences), by the delta method on its sums.

There are two ways to the same number: `standard_error`, from each document's own sums, if a host keeps them; and the
metric `StandardError`, from sums of products, which takes a constant number of exact sums and merges like any metric.

A metric's value is a function v of its total sums S = Σ_d s_d, so to first order its error is that of Σ_d g · s_d with
g = ∂v/∂S. Over D samples SE² = D/(D − 1) · Σ_d (g · (s_d − S/D))² = D/(D − 1) · (gᵀ M g − (g · S)²/D) with
M = Σ_d s_d s_dᵀ. For a ratio R = Y/X this is the ratio estimator D/(D − 1) · Σ_d (y_d − R x_d)² / X².

Reference: Cochran (1977), Sampling Techniques, section 6.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.plugins import as_metric
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.layout import COUNTS
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.shared_sums import SharedSum, shared_key
from xent_metrics.sums.taking import by_sequence, take_sums_by_sequence
from xent_metrics.sums.terms import Binned, Terms
from xent_metrics.wrappers.grouped import Grouped

__all__ = [
    "StandardError",
    "by_chunk",
    "gradient_of",
    "is_sample",
    "residuals",
    "standard_error",
    "standard_error_from_moments",
    "standard_error_of_sums",
]

_CHUNK_ELEMENTS = 2**18  # float64 numbers worked on at once, 2 MiB


def standard_error(metric: TokenMetric, states: Tensor) -> float:
    """The standard error of the metric's value if documents are drawn independently; nan for fewer than two.

    A document without a row that counts is not a sample. nan, too, for a metric without `has_standard_error`.

    Args:
        metric: gives the value; its own state is not used.
        states: each document's packed sums, int64 ``(D, rows, 8)``, from ``metric.exact_sums(scores)``, in any order.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> metric = CrossEntropy()
    >>> documents = [from_loglikelihoods([-x], row_kind="token") for x in (1.0, 2.0, 3.0)]
    >>> round(standard_error(metric, torch.stack([metric.exact_sums(d) for d in documents])), 4)   # 1/√3
    0.5774
    """
    states = states.cpu()
    states = states[is_sample(states)]
    if not len(states):
        return float("nan")
    return standard_error_of_sums(metric, exact_sum.to_float(states), exact_sum.merge(states))


def standard_error_of_sums(metric: TokenMetric, sums: Tensor, total: Tensor) -> float:
    """The same from the sums of the documents that are samples, ``(D, rows)`` float64, and their merged states."""
    documents = len(sums)
    if documents < 2 or not metric.has_standard_error:
        return float("nan")
    residual = _residuals(metric, sums, exact_sum.to_float(total))
    return math.sqrt(math.fsum(residual.square().tolist()) * documents / (documents - 1))


def residuals(metric: TokenMetric, states: Tensor) -> Tensor:
    """(s_d − S/D) · g of each document's sums s_d, ``(D,)``, where g is the slope of the value at the total S."""
    return _residuals(metric, exact_sum.to_float(states), exact_sum.to_float(exact_sum.merge(states)))


def _residuals(metric: TokenMetric, sums: Tensor, total: Tensor) -> Tensor:
    gradient = gradient_of(lambda rows: metric.value(metric.unpack(rows)), total)
    mean = total / len(sums)
    return by_chunk(lambda chunk: ((chunk - mean) * gradient).sum(dim=-1), sums)  # each row by itself


def by_chunk(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A function of each row, ``(D, …)`` to ``(D,)``, in memory that doesn't grow with D."""
    size = max(1, _CHUNK_ELEMENTS // max(1, rows[:1].numel()))
    first = function(rows[:size])
    found = first.new_empty(len(rows))
    found[:size] = first
    for start in range(size, len(rows), size):
        found[start : start + size] = function(rows[start : start + size])
    return found


def is_sample(states: Tensor) -> Tensor:
    """True for the documents with packed sums, of ``(D, rows, 8)``, that hold more than ignored rows, ``(D,)``."""
    not_empty = states.any(dim=-1)  # (D, rows)
    not_empty[:, COUNTS.index("ignored")] = False
    return not_empty.any(dim=-1)


def standard_error_from_moments(
    value: Callable[[Tensor], Tensor], total: Tensor, products: Tensor, samples: Tensor
) -> Tensor:
    """The same standard error from sums alone, a 0-d float64; nan for fewer than two samples.

    The two terms cancel if all samples have nearly the same value: a result below about 1e-8 of the value is the rounding
    of the products.

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
    square = _dot(_dot(gradient, products), gradient) - _dot(gradient, total).square() / samples
    error = (square.clamp(min=0.0) * samples / (samples - 1)).sqrt()
    return torch.where((samples > 1) & total.isfinite().all(), error, torch.nan)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of a vector and a vector or symmetric matrix; off the CPU without cuBLAS, which may refuse to be deterministic."""
    return a @ b if a.device.type == "cpu" else (a * b).sum(-1)


def gradient_of(value: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
    """∂value/∂sums at `total`, ``(R,)``."""
    with torch.inference_mode(False), torch.enable_grad():  # Lightning validates in inference mode
        sums = total.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(sums), sums)
    return gradient


@dataclass(frozen=True)
class _Products(SharedSum):
    """Σ over sequences of all products of two of these sums."""

    of: tuple[SharedSum, ...]
    keys: tuple[str, ...] = field(compare=False, repr=False)  # of each of them

    @property
    def name(self) -> str:
        return _products_name(each.name for each in self.of)

    def terms(self, scores: TokenScores) -> Binned:
        missing = {
            key: each for key, each in zip(self.keys, self.of, strict=True) if by_sequence(key) not in scores.memo
        }
        take_sums_by_sequence(scores, {key: each.terms(scores) for key, each in missing.items()})
        return _products([scores.memo[by_sequence(key)] for key in self.keys])


@dataclass(frozen=True)
class _Sequences(SharedSum):
    """How many sequences are samples: some row counts, has a weight, and isn't broken."""

    @property
    def name(self) -> str:
        return "sequences"

    def terms(self, scores: TokenScores) -> Tensor:
        counted = scores.counted & ~scores.broken
        counted = counted if scores.weight is None else counted & (scores.weight != 0)
        count = len(scores) if scores.nll.ndim else 1
        return counted.reshape(count, scores.num_rows // max(count, 1)).any(dim=1)


_SEQUENCES = _Sequences()


class StandardError(TokenMetric):
    """The standard error of another metric's value over the sequences that were added, in that metric's unit.

    The first dimension of the scores counts the sequences, taken to be independent of each other: ``(B, T)`` are B
    sequences, ``(N,)`` are N samples of one row each. A sequence without a row that counts is not a sample.

    Args:
        metric: the metric or its registered name; its own state is not used.
        kwargs: as for `TokenMetric`.

    The state holds the metric's sums, the sums of all products of two of them (to 2^-128, since products of small sums are
    smaller still), and the number of sequences: 12 rows of 8 integers for a ratio, 2,119 for 15 bins of three kinds. It
    merges, syncs and resumes like every metric.

    Raises:
        MetricOptionError: the metric's value has no slope in its sums, so the delta method has no error for it.

    >>> from xent_metrics import CrossEntropy, from_loglikelihoods
    >>> error = StandardError(CrossEntropy())
    >>> error.update(from_loglikelihoods([-1.0, -2.0, -3.0], row_kind="token"))
    >>> error.compute()     # 1/√3
    tensor(0.5774, dtype=torch.float64)
    """

    name = "standard_error"
    higher_is_better = False
    formula = "√(D/(D − 1) · (gᵀ M g − (g · S)²/D))"
    value_unit = "the metric's unit"
    reference = "Cochran (1977), Sampling Techniques, section 6.3"
    metric: TokenMetric

    def __init__(self, metric: TokenMetric | str, **kwargs: Any) -> None:
        metric = as_metric(metric)
        if not metric.has_standard_error:
            raise MetricOptionError(
                f"{metric.name} is a step function of its sums, for which the delta method has no error. Keep each "
                "document's sums (metric.exact_sums) and pass them to xent_metrics.analysis.bootstrap"
            )
        super().__init__(ignore_index=metric.ignore_index, **kwargs)
        self.name = f"{metric.name}_stderr"  # type: ignore[misc]
        self.value_unit = metric.value_unit
        self.requires = metric.requires
        self.row_kinds = metric.row_kinds  # type: ignore[misc]
        self.metric = copy.deepcopy(metric)
        self._sum_names = tuple(metric.layout.bins)
        self._shared_keys = self._made_shared_keys()

    def _made_shared_keys(self) -> tuple[str, ...]:
        """The keys of the metric's shared sums, valid in one process."""
        return tuple(map(shared_key, self.metric.shared_by_name().values()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._shared_keys = self._made_shared_keys()

    def scoring_options(self) -> dict[str, Any]:
        return self.metric.scoring_options()

    def score(self, *batch: Any, **options: Any) -> TokenScores:
        """As the metric scores: it takes what the metric takes, such as a pair of logits."""
        return self.metric.score(*batch, **options)

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return self.metric.extra_scores()

    def shared_sums(self) -> Sequence[SharedSum]:
        shared = tuple(self.metric.shared_by_name().values())
        if len(shared) < len(self._sum_names):
            return [*shared, _SEQUENCES]
        return [*shared, _Products(shared, self._shared_keys), _SEQUENCES]

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        own = self.metric.sums(scores)
        if not own:
            return {}
        sums = self.metric.layout.by_name(self.metric.exact_sums_by_sequence(scores).transpose(0, 1))
        products = _products([sums[name].transpose(0, 1) for name in self._sum_names])
        return {**own, _products_name(self._sum_names): products}

    def largest_sum(self, sums: Tensor) -> float:
        """The largest magnitude of the metric's sums, without their products."""
        by_name = self.layout.by_name(sums)
        return float(torch.cat([by_name[name] for name in self._sum_names]).abs().amax())

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return self._error(self.metric.value, sums)

    def by_group(self) -> dict[str, Tensor]:
        """Each group's standard error by label, over all sequences added on this process, if the metric is a `Grouped`.

        For the sequences of all processes call this inside ``with metric.sync_context():``.

        >>> from xent_metrics import CrossEntropy, Grouped, Position, score_tokens
        >>> error = StandardError(Grouped(CrossEntropy(), by=Position([0, 1])))
        >>> error.update(score_tokens(torch.randn(9, 5, 7), torch.zeros(9, 5, dtype=torch.long)))
        >>> list(error.by_group())
        ['0', '1+']
        """
        grouped = self.metric
        if not isinstance(grouped, Grouped):
            raise MetricOptionError(f"{grouped.name} has no groups; expected StandardError(Grouped(metric, …))")
        sums = self.totals()
        return {
            label: self._error(partial(grouped.value_of_group, group=group), sums)
            for group, label in enumerate(grouped.grouping.labels)
        }

    def _error(self, value: Callable[[Mapping[str, Tensor]], Tensor], sums: Mapping[str, Tensor]) -> Tensor:
        """The error of a function of the metric's sums."""
        own = {name: sums[name] for name in self._sum_names}
        total = torch.cat([rows.reshape(-1) for rows in own.values()])
        sizes = [rows.numel() for rows in own.values()]

        def of_rows(rows: Tensor) -> Tensor:
            parts = zip(own.items(), torch.split(rows, sizes), strict=True)
            return value({name: part.reshape(like.shape) for (name, like), part in parts})

        high, low = sums[_products_name(self._sum_names)].chunk(2)
        products = _symmetric(high + low * exact_sum.FINEST, len(total))
        return standard_error_from_moments(of_rows, total, products, sums[_SEQUENCES.name])


def _products_name(names: Iterable[str]) -> str:
    return f"products[{', '.join(names)}]"


def _products(sums: Sequence[Tensor]) -> Binned:
    """The products of all pairs of columns of exact sums by sequence, each ``(B, bins, 8)``: ``(B, R (R + 1))``.

    The first half of the bins is for the products, the second for what their sums round away.
    """
    rows = exact_sum.to_float(torch.cat(list(sums), dim=1), finite_only=True)  # (B, R); the total has the nan
    first, second = torch.triu_indices(rows.shape[1], rows.shape[1], device=rows.device)
    products = rows.index_select(1, first) * rows.index_select(1, second)
    both = torch.cat([products, exact_sum.rounded_away(products)], dim=1)
    return Binned(both, torch.arange(both.shape[1], device=rows.device).expand_as(both), both.shape[1])


def _symmetric(upper: Tensor, size: int) -> Tensor:
    """The symmetric matrix ``(size, size)`` with this upper triangle, row by row."""
    first, second = torch.triu_indices(size, size, device=upper.device)
    matrix = torch.zeros(size, size, dtype=upper.dtype, device=upper.device)
    matrix[first, second] = upper
    matrix[second, first] = upper
    return matrix
