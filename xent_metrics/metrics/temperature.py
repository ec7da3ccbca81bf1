"""The temperature that minimises the cross entropy, and the cross entropy there: one pass, no logits kept.

Dividing the logits by T keeps the ranking and corrects a model that is over- or underconfident throughout. The nll at
1/T = β is ln Σ_v p_v^β − β ln p(target), which is convex in β. Its value, slope and curvature are summed on a grid of
temperatures, a factor of 2^¼ apart. Between two of them the nll is interpolated by the quintic polynomial with these six
numbers, and its minimum is found when the value is computed.

Compared with a search over the logits themselves, the best T was found within a factor of 1 ± 1e-4 and its loss within
1e-5 nats, for spread and peaked logits, a few classes and 50,000. The worst case, identical rows with one class far above
50,000 equal ones, gave 3e-4 and 2e-4 nats. If the loss hardly depends on T (a confident model that is always right), no T
is clearly the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum
from xent_metrics.sums.terms import Binned

__all__ = ["CrossEntropyAtOptimalTemperature", "OptimalTemperature"]

_NO_MORE = 800.0  # exp(−800) is 0 in float64


@dataclass(frozen=True)
class _NllAtTemperatures:
    """An extra score: nll with its slope and curvature in ln β; equal grids are equal scores."""

    highest: float
    log_betas: tuple[float, ...]

    def __call__(self, log_prob: Tensor, index: Tensor) -> Tensor:
        """``(rows, 3 G)``: value, slope and curvature at each β, from moments of ln p weighted by p^β / Σ p^β."""
        top = log_prob.amax(-1, keepdim=True)
        target = (log_prob.gather(-1, index[:, None]) - top).squeeze(-1)
        below = (log_prob - top).clamp_(min=-_NO_MORE * self.highest)  # of no share there, and 0 · −inf would be nan
        square = below.square()
        found = []
        for beta in map(math.exp, self.log_betas):
            power = (below * beta).exp_()
            norm = power.sum(-1)
            mean = (power * below).sum(-1) / norm
            variance = (power * square).sum(-1) / norm - mean.square()
            slope = beta * (mean - target)
            found += [norm.log() - beta * target, slope, slope + beta**2 * variance]
        return torch.stack(found, dim=-1)


@dataclass(frozen=True)
class _GridSum(SharedSum):
    """Σ weight · each column of the extra score."""

    score_name: str

    @property
    def name(self) -> str:
        return self.score_name

    def terms(self, scores: TokenScores) -> Binned:
        grid = scores.weighted(scores.extra_scores[self.score_name])
        columns = torch.arange(grid.shape[-1], device=grid.device).expand_as(grid)
        return Binned(grid, columns, grid.shape[-1])


class _TemperatureGrid(TokenMetric):
    """nll, and its first and second derivative by ln β, summed at each of a grid of temperatures."""

    requires = frozenset[str]()

    def __init__(self, lowest: float = 0.25, highest: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < lowest < highest < math.inf:
            raise MetricOptionError(f"{self.name}: temperatures have 0 < lowest < highest; got {lowest!r}, {highest!r}")
        self.lowest, self.highest = float(lowest), float(highest)
        steps = math.ceil(4 * math.log2(highest / lowest) - 1e-9)
        self._step = math.log(highest / lowest) / steps  # of ln β
        self._log_betas = [-math.log(highest) + i * self._step for i in range(steps + 1)]
        self._score_name = f"nll_at_temperatures[{self.lowest}, {self.highest}]"

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        grid = _NllAtTemperatures(self.highest, tuple(self._log_betas))
        return {self._score_name: ExtraScore(grid, (3 * len(self._log_betas),))}

    def shared_sums(self) -> Sequence[SharedSum]:
        return _GridSum(self._score_name), TOKENS

    def _minimum(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """ln β at the smallest mean nll of the range, and that nll; nan if nothing counted or a target has p = 0."""
        table = sums[self._score_name].reshape(-1, 3) / sums[TOKENS.name]
        last = (table[:, 1] <= 0).sum().clamp(1, len(table) - 1) - 1  # the minimum lies to the right of this point
        ends = table.index_select(0, torch.stack([last, last + 1]))
        coefficients = _quintic(ends * self._step ** torch.arange(3, device=ends.device))
        place = _lowest_point(coefficients)
        nll = torch.where(table[0, 0] == torch.inf, torch.inf, _polynomial(coefficients, place))
        return -math.log(self.highest) + (last + place) * self._step + 0 * nll, nll


class OptimalTemperature(_TemperatureGrid):
    """Optimal temperature = argmin_T −Σ ln softmax(ln p / T)[target]: above 1 for an overconfident model, below for the other.

    Args:
        lowest: the lowest temperature looked at; an optimum outside the range is its nearer end, with a standard error of 0.
        highest: the highest temperature looked at.
        kwargs: as for `TokenMetric`.

    It is what temperature scaling would fit on these data. Costs about 17 passes over the logits with the default range.
    nan if a target has the probability 0. Reference: Guo et al. (2017), arXiv:1706.04599.

    Raises:
        MetricOptionError: not 0 < lowest < highest < ∞.

    >>> metric = OptimalTemperature()
    >>> metric.update(torch.tensor([[2.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1]))   # 2/T = ln 3
    >>> metric.compute()
    tensor(1.8205, dtype=torch.float64)
    """

    name = "optimal_temperature"
    formula = "argmin_T −Σ ln softmax(ln p / T)[target]"
    latex = r"\operatorname{argmin}_T \; -\sum_t \ln \frac{p_t(y_t)^{1/T}}{\sum_v p_t(v)^{1/T}}"
    value_unit = "temperature"
    value_range = (0.0, math.inf)
    reference = "Guo et al. (2017), arXiv:1706.04599"
    use_when = "To see whether one temperature would help, and which: above 1 for an overconfident model."
    hides = (
        "How much there is to gain, which cross_entropy_at_optimal_temperature shows. It is fitted to the data that "
        "it is measured on, and hardly determined where the loss hardly depends on T."
    )
    higher_is_better = None

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(-self._minimum(sums)[0])


class CrossEntropyAtOptimalTemperature(_TemperatureGrid):
    """Cross entropy at the optimal temperature = min_T −Σ ln softmax(ln p / T)[target] / N, in nats per token.

    Args:
        lowest: as for `OptimalTemperature`.
        highest: as for `OptimalTemperature`.
        kwargs: as for `TokenMetric`.

    `cross_entropy` minus this value is what temperature scaling gains in sample: never negative, and 0 for a model with its
    optimum at T = 1. Reference: as for `OptimalTemperature`.

    Raises:
        MetricOptionError: as for `OptimalTemperature`.

    >>> metric = CrossEntropyAtOptimalTemperature()
    >>> metric.update(torch.tensor([[2.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1]))   # the entropy of ¾ and ¼
    >>> metric.compute()
    tensor(0.5623, dtype=torch.float64)
    """

    name = "cross_entropy_at_optimal_temperature"
    higher_is_better = False
    formula = "min_T −Σ ln softmax(ln p / T)[target] / tokens"
    latex = r"\min_T \; -\frac{1}{N} \sum_t \ln \frac{p_t(y_t)^{1/T}}{\sum_v p_t(v)^{1/T}}"
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Guo et al. (2017), arXiv:1706.04599"
    use_when = (
        "To compare models apart from their overall confidence. Its difference from the cross entropy is what "
        "temperature scaling gains."
    )
    hides = (
        "It is fitted to the data that it is measured on, so it is too low on little data. One temperature doesn't "
        "mend a confidence that is too high in one place and too low in another."
    )

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return self._minimum(sums)[1]


def _quintic(ends: Tensor) -> Tensor:
    """The coefficients, constant first, of the quintic on [0, 1] with value, slope and curvature ``(2, 3)`` at its ends."""
    (f0, d0, c0), (f1, d1, c1) = (end.unbind() for end in ends.unbind())
    rise = f1 - f0
    return torch.stack([
        f0,
        d0,
        c0 / 2,
        10 * rise - 6 * d0 - 4 * d1 - (3 * c0 - c1) / 2,
        -15 * rise + 8 * d0 + 7 * d1 + (3 * c0 - 2 * c1) / 2,
        6 * rise - 3 * (d0 + d1) - (c0 - c1) / 2,
    ])  # fmt: skip


def _lowest_point(coefficients: Tensor) -> Tensor:
    """The place in [0, 1] where the slope changes from − to +, or the end that it points to; differentiable inside."""
    slope = coefficients[1:] * torch.arange(1, 6, device=coefficients.device)
    low, high = torch.zeros_like(slope[0]), torch.ones_like(slope[0])
    with torch.no_grad():
        for _ in range(60):
            middle = (low + high) / 2
            falls = _polynomial(slope, middle) <= 0
            low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
        curvature = _polynomial(slope[1:] * torch.arange(1, 5, device=slope.device), low)
    # A step of Newton's carries the gradient of the implicit function; at an end of the range there is none to take.
    inside = (low > 0) & (high < 1) & (curvature > 0)
    step = _polynomial(slope, low) / torch.where(inside, curvature, 1.0)
    return torch.where(inside, low - step, low)


def _polynomial(coefficients: Tensor, place: Tensor) -> Tensor:
    """Σ_i c_i x^i."""
    total = torch.zeros_like(place)
    for coefficient in reversed(coefficients.unbind()):
        total = total * place + coefficient
    return total
