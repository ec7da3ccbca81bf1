"""One model compared with another over the same text: divergences, and what quantising or distilling changed.

metric.update(base_logits, other_logits)
metric.update((base_logits, other_logits), target)       # or, once for many metrics, a score_pair of the same
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics.calibration import root
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.metrics.running_sum import running_sum
from xent_metrics.scoring.devices import widest_float
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum
from xent_metrics.sums.terms import Binned, Terms

__all__ = [
    "JensenShannonDivergence",
    "KLDivergence",
    "KLDivergenceQuantile",
    "LogPerplexityRatio",
    "ProbabilityChange",
    "RMSProbabilityChange",
    "SameTopToken",
    "SoftCrossEntropy",
]


def _wide(values: Tensor) -> Tensor:
    """In float64: products and differences of float32 are exact there, or nearly so."""
    return values.to(widest_float(values.device))


class _PairMean(PairMetric, RatioMetric):
    """The mean of a pair's score."""

    def sum_names(self) -> tuple[str, SharedSum]:
        return f"{self.pair_score}(temperature={self.temperature})", TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.extra_scores[self.pair_score]


class KLDivergence(_PairMean):
    """Kullback–Leibler divergence = mean over tokens of KL(P‖Q) = Σ_v p_v ln(p_v / q_v), in nats per token.

    P comes from the first logits (the base, the teacher), Q from the second.

    Args:
        temperature: divides both logits.
        kwargs: as for `TokenMetric`.

    Shapes: ``update(logits, other_logits)``, both ``(…, V)``. Reference: Kullback and Leibler (1951).

    Raises:
        MetricOptionError: a `temperature` that isn't positive.

    >>> metric = KLDivergence()
    >>> metric.update(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))     # ½ ln(½/¾) + ½ ln(½/¼)
    >>> metric.compute()
    tensor(0.1438, dtype=torch.float64)
    """

    name = "kl_divergence"
    formula = "Σ_tokens Σ_v p_v ln(p_v / q_v) / tokens"
    latex = r"\frac{1}{N} \sum_t \sum_v p_t(v) \ln \frac{p_t(v)}{q_t(v)}"
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Kullback and Leibler (1951), On information and sufficiency"
    use_when = "To see how much quantising, pruning or distilling has changed the predictions. It needs no targets."
    hides = (
        "Whether the change is for the better. As a mean it doesn't show a few tokens with large changes, which "
        "kl_divergence_quantile does. Exchanging the models gives another value."
    )
    pair_score = "kl_divergence"
    higher_is_better = False


class SoftCrossEntropy(_PairMean):
    """Soft cross entropy = mean over tokens of −Σ_v p_v ln q_v, in nats per token: the entropy of P plus KL(P‖Q).

    Args:
        temperature: divides both logits.
        kwargs: as for `TokenMetric`.

    Shapes: ``update(logits, other_logits)``, both ``(…, V)``. Reference: Hinton et al. (2015), arXiv:1503.02531.

    Raises:
        MetricOptionError: a `temperature` that isn't positive.

    >>> metric = SoftCrossEntropy()
    >>> metric.update(torch.zeros(1, 8), torch.zeros(1, 8))        # ln 8
    >>> metric.compute()
    tensor(2.0794, dtype=torch.float64)
    """

    name = "soft_cross_entropy"
    formula = "−Σ_tokens Σ_v p_v ln q_v / tokens"
    latex = r"-\frac{1}{N} \sum_t \sum_v p_t(v) \ln q_t(v)"
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Hinton et al. (2015), arXiv:1503.02531"
    use_when = "As the loss of distillation: the student's cross entropy under the teacher's distribution."
    hides = (
        "It contains the teacher's own entropy, so that it isn't 0 for a perfect student; what is above that is "
        "kl_divergence."
    )
    pair_score = "soft_cross_entropy"
    higher_is_better = False


class JensenShannonDivergence(_PairMean):
    """Jensen–Shannon divergence = mean of ½ KL(P‖M) + ½ KL(Q‖M), M = ½ (P + Q), in nats per token; symmetric, ≤ ln 2.

    Args:
        temperature: divides both logits.
        kwargs: as for `TokenMetric`.

    Shapes: ``update(logits, other_logits)``, both ``(…, V)``. Reference: Lin (1991).

    Raises:
        MetricOptionError: a `temperature` that isn't positive.

    >>> metric = JensenShannonDivergence()
    >>> metric.update(torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]]))      # nothing in common: ln 2
    >>> metric.compute()
    tensor(0.6931, dtype=torch.float64)
    """

    name = "jensen_shannon_divergence"
    formula = "Σ_tokens ½ KL(P‖M) + ½ KL(Q‖M) / tokens, M = ½ (P + Q)"
    latex = (
        r"\frac{1}{2N} \sum_t \left[\mathrm{KL}(p_t \| m_t) + \mathrm{KL}(q_t \| m_t)\right], \quad m_t = \frac{p_t + "
        r"q_t}{2}"
    )
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Lin (1991), Divergence measures based on the Shannon entropy"
    use_when = "Where a divergence has to be symmetric and finite, although one model rules out what the other allows."
    hides = (
        "Near its bound of ln 2 it hardly tells very different distributions from disjoint ones. It doesn't say which"
        " model is better."
    )
    pair_score = "jensen_shannon_divergence"
    higher_is_better = False


class SameTopToken(_PairMean):
    """Same top token = Σ [argmax p = argmax q] / N: how often both models have the same top-1 token, in [0, 1].

    Shapes: ``update(logits, other_logits)``, both ``(…, V)``.

    >>> metric = SameTopToken()
    >>> metric.update(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    name = "same_top_token"
    formula = "Σ [argmax p = argmax q] / tokens"
    latex = r"\frac{1}{N} \sum_t \left[\operatorname{argmax}_v p_t(v) = \operatorname{argmax}_v q_t(v)\right]"
    value_unit = "share of tokens"
    value_range = (0.0, 1.0)
    reference = "reported by llama.cpp's perplexity tool"
    use_when = "To see how often greedy decoding would choose the same next token."
    hides = (
        "How close the choice was: two equally likely tokens that change places count as much as a new favourite, and"
        " a change that leaves the favourite doesn't count. Texts that the models write differ from their first "
        "different token on."
    )
    pair_score = "same_top"
    higher_is_better = True


class ProbabilityChange(_PairMean):
    """Probability change = Σ (q(target) − p(target)) / N, in [−1, 1]: the mean change of the target's probability.

    Shapes: ``update((logits, other_logits), target)``; without targets, those are the base's top-1 tokens.

    >>> metric = ProbabilityChange()
    >>> metric.update(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))     # ¾ − ½
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    name = "probability_change"
    formula = "Σ (q(target) − p(target)) / tokens"
    latex = r"\frac{1}{N} \sum_t \left(q_t(y_t) - p_t(y_t)\right)"
    value_unit = "probability"
    value_range = (-1.0, 1.0)
    reference = "reported by llama.cpp's perplexity tool"
    use_when = (
        "To see whether the changed model gives the targets more or less probability, on a scale on which no single "
        "token decides."
    )
    hides = "Changes of opposite signs cancel, and changes of small probabilities don't show."
    pair_score = "probability_change"
    higher_is_better = None


class RMSProbabilityChange(_PairMean):
    """RMS probability change = √(Σ (q(target) − p(target))² / N), in [0, 1].

    The square root isn't differentiable at 0 (identical models); the standard error is 0 there.

    Shapes: ``update((logits, other_logits), target)``; without targets, those are the base's top-1 tokens.

    >>> metric = RMSProbabilityChange()
    >>> metric.update(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    name = "rms_probability_change"
    formula = "√(Σ (q(target) − p(target))² / tokens)"
    latex = r"\sqrt{\frac{1}{N} \sum_t \left(q_t(y_t) - p_t(y_t)\right)^2}"
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "reported by llama.cpp's perplexity tool"
    use_when = "For the size of the changes of the targets' probabilities, whatever their direction."
    hides = "The direction of the changes, and changes of small probabilities."
    pair_score = "probability_change"
    higher_is_better = False

    def sum_names(self) -> tuple[str, SharedSum]:
        return f"square of probability_change(temperature={self.temperature})", TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return _wide(super().per_token(scores)).square()

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return root(super().value(sums))


class LogPerplexityRatio(_PairMean):
    """ln(perplexity of the other / perplexity of the base) = Σ (ln p(target) − ln q(target)) / tokens, in nats per token.

    Shapes: ``update((logits, other_logits), target)``; without targets, those are the base's top-1 tokens.

    >>> metric = LogPerplexityRatio()
    >>> metric.update(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))     # ln(½ / ¾)
    >>> metric.compute()
    tensor(-0.4055, dtype=torch.float64)
    """

    name = "log_perplexity_ratio"
    formula = "Σ (ln p(target) − ln q(target)) / tokens"
    latex = r"\frac{1}{N} \sum_t \ln \frac{p_t(y_t)}{q_t(y_t)}"
    value_unit = "nats per token"
    reference = "reported by llama.cpp's perplexity tool"
    use_when = (
        "To see how much better or worse the changed model predicts a text. It is taken token by token, so its "
        "standard error is that of the differences."
    )
    hides = "Gains and losses on different tokens cancel."
    pair_score = "base_nll"
    higher_is_better = False

    def sum_names(self) -> tuple[str, SharedSum]:
        return f"nll − base_nll(temperature={self.temperature})", TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return _wide(scores.nll) - _wide(scores.extra_scores["base_nll"])


class KLDivergenceQuantile(PairMetric):
    """A quantile over tokens of KL(P‖Q), in nats, to a relative accuracy of 1 %; `quantile=1` is the maximum.

    From a histogram with bins that grow by a factor, (1.01/0.99)^i, so that any two merge by addition. Values below 1e-9
    count as 0, values above 1e4 as 1e4; infinite ones (a token that P allows and Q rules out) stay infinite. As a step
    function of its sums it has no standard error by the delta method; `xent_metrics.analysis.bootstrap` gives one.

    Args:
        quantile: in [0, 1].
        temperature: divides both logits.
        kwargs: as for `TokenMetric`.

    Reference: Masson, Rim and Lee (2019), DDSketch, arXiv:1908.10693.

    Raises:
        MetricOptionError: a `quantile` outside [0, 1], or a `temperature` that isn't positive.

    >>> metric = KLDivergenceQuantile(quantile=1.0)
    >>> metric.update(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))     # 0.1438
    >>> abs(metric.compute() / 0.1438 - 1) < 0.0101
    tensor(True)
    """

    name = "kl_divergence_quantile"
    formula = "quantile over tokens of Σ_v p_v ln(p_v / q_v)"
    latex = r"\operatorname{quantile}_t \; \sum_v p_t(v) \ln \frac{p_t(v)}{q_t(v)}"
    value_unit = "nats"
    reference = "Masson et al. (2019), arXiv:1908.10693"
    use_when = "For the most changed tokens: the 99th percentile shows damage that the mean averages away."
    hides = "Everything else about the distribution over tokens, and whether a change is for the better."
    pair_score = "kl_divergence"
    higher_is_better = False
    has_standard_error = False

    _GROWTH = math.log(1.01 / 0.99)
    _LEAST, _MOST = 1e-9, 1e4
    _INFINITE = math.ceil((math.log(_MOST) - math.log(_LEAST)) / _GROWTH) + 1  # the last bin

    def __init__(self, quantile: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= quantile <= 1:
            raise MetricOptionError(f"{self.name}: quantile is a number in [0, 1]; got {quantile!r}")
        self.quantile = quantile

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        values = _wide(scores.extra_scores[self.pair_score])
        place = (values.clamp(self._LEAST, self._MOST) / self._LEAST).log() / self._GROWTH
        bins = place.ceil().nan_to_num(0.0).long().clamp(0, self._INFINITE - 1)
        bins = torch.where(values == torch.inf, self._INFINITE, bins)
        counts = scores.weighted(torch.ones_like(values, dtype=torch.float32))
        return {f"kl_divergence histogram(temperature={self.temperature})": Binned(counts, bins, self._INFINITE + 1)}

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        (counts,) = sums.values()
        below = running_sum(counts)
        rank = torch.clamp(self.quantile * below[-1], min=torch.finfo(counts.dtype).tiny)
        place = (below < rank).sum()  # the first bin to reach the rank
        edge = self._LEAST * torch.exp(self._GROWTH * place.to(counts.dtype))
        middle = torch.where(place == 0, torch.zeros_like(edge), 2 * edge / (1 + math.exp(self._GROWTH)))
        middle = torch.where(place == self._INFINITE, torch.inf, middle)
        return torch.where(below[-1] > 0, middle, torch.nan) + 0 * below[-1]
