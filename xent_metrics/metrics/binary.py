"""Binary cross entropy: the loss of one logit, or one probability, per row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import TOKENS, SharedSum
from xent_metrics.sums.terms import Terms

__all__ = ["BinaryCrossEntropy"]


class BinaryCrossEntropy(RatioMetric):
    """Binary cross entropy (log loss) = −Σ [y ln p + (1 − y) ln(1 − p)] / N, p the probability of the class 1, in nats.

    Args:
        from_logits: whether `update` gets logits z, with p = 1/(1 + exp(−z)), or probabilities.
        kwargs: as for `TokenMetric`.

    Shapes: logits and target ``(…)``. Targets are 0, 1 or `ignore_index`, bools, or floats in [0, 1] (soft targets).
    Computed in log space, so exact for any logit, and infinite if a probability of 0 or 1 is wrong (others clip it).
    Every other metric takes the same scores: ``score_tokens(logits, target, binary="logits")``.

    Reference: Good (1952), Rational Decisions.

    Raises:
        InvalidInputError: scores of another number of classes than two.
        MetricOptionError: a `from_logits` that is neither True nor False.

    >>> import torch
    >>> metric = BinaryCrossEntropy(from_logits=False)
    >>> metric.update(torch.tensor([0.5, 0.75, 0.0]), torch.tensor([1, 1, 0]))      # (ln 2 + ln 4/3 + 0) / 3
    >>> metric.compute()
    tensor(0.3269, dtype=torch.float64)
    """

    name = "binary_cross_entropy"
    higher_is_better = False
    formula = "−Σ [y ln p + (1 − y) ln(1 − p)] / rows"
    latex = r"-\frac{1}{N} \sum_t \left[y_t \ln p_t + (1 - y_t) \ln(1 - p_t)\right]"
    value_unit = "nats per row"
    value_range = (0.0, math.inf)
    reference = "Good (1952), Rational Decisions"
    use_when = "For classifiers with one logit, or one probability, per row."
    hides = (
        "It is a mean over both classes: if one of them is rare, always predicting its frequency already gives a low "
        "value. Compare with the entropy of the classes' frequencies."
    )

    def __init__(self, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(from_logits, bool):
            raise MetricOptionError(f"{self.name}: from_logits is True or False; got {from_logits!r}")
        self.from_logits = from_logits

    def scoring_options(self) -> dict[str, Any]:
        return {"binary": "logits" if self.from_logits else "probabilities"}

    def sum_names(self) -> tuple[str, SharedSum]:
        return f"nats[binary={self.scoring_options()['binary']}]", TOKENS

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        if scores.vocab_size not in (None, 2):
            raise InvalidInputError(
                f"{self.name} takes scores of two classes; got {scores.vocab_size}. The loss over all of them is cross_entropy"
            )
        return super().sums(scores)

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.nll
