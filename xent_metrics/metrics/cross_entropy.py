"""Cross entropy and perplexity: two functions of the same sums, `NATS` and `TOKENS`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.devices import widest_float
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.options import readable
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import NATS, TOKENS, SharedSum

__all__ = ["CrossEntropy", "Perplexity"]


class _NatsPerToken(RatioMetric):
    higher_is_better = False

    def sum_names(self) -> tuple[str | SharedSum, str | SharedSum]:
        return NATS, TOKENS

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.nll


class CrossEntropy(_NatsPerToken):
    """Cross entropy = −Σ_t w_t ln p(target_t) / Σ_t w_t, in nats per token (or bits: divided by ln 2).

    Args:
        unit: "nats" or "bits".
        label_smoothing: as in `torch.nn.functional.cross_entropy`; with it, or with `class_weight`, the value is that
            training loss, averaged over everything added as `reduction="mean"` averages over one batch.
        class_weight: ``(V,)``, as there.
        kwargs: as for `TokenMetric`.

    Shapes: logits ``(…, V)``, target ``(…)`` or a distribution ``(…, V)``.

    Raises:
        MetricOptionError: an unknown `unit`, or a `label_smoothing` outside [0, 1].

    >>> metric = CrossEntropy()
    >>> metric.update(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, -100]]))
    >>> metric.compute()        # uniform over 8: ln 8
    tensor(2.0794, dtype=torch.float64)
    """

    name = "cross_entropy"
    formula = "−Σ ln p(target) / tokens"
    latex = r"-\frac{1}{N} \sum_t \ln p_t(y_t)"
    value_unit = "nats per token"
    value_range = (0.0, math.inf)
    reference = "Shannon (1948), A Mathematical Theory of Communication"
    use_when = (
        "It is what training minimises: use it to follow a training, and to compare models with the same tokenizer on"
        " the same text."
    )
    hides = (
        "Models with other tokenizers can't be compared by it, since it is per token. As a mean over all tokens it "
        "doesn't show where in the text the loss arises, and a few very unlikely tokens can outweigh many."
    )
    _class_weight_8: Tensor | None

    def __init__(
        self,
        unit: Literal["nats", "bits"] = "nats",
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unit not in ("nats", "bits"):
            raise MetricOptionError(f'cross_entropy: unit is "nats" or "bits"; got {unit!r}')
        if not isinstance(label_smoothing, int | float) or not 0.0 <= label_smoothing <= 1.0:
            raise MetricOptionError(f"cross_entropy: label_smoothing is a number in [0, 1]; got {label_smoothing!r}")
        self.unit = unit
        self.value_unit = f"{unit} per token"
        self.label_smoothing = label_smoothing
        # Kept as its bits: `.to(torch.bfloat16)` on the module would round a float buffer. In 8 bytes, and in 4 for devices
        # without float64.
        for kind, bits in ((torch.float64, torch.int64), (torch.float32, torch.int32)):
            kept = None if class_weight is None else as_tensor(class_weight).to(kind).view(bits)
            self.register_buffer(f"_class_weight_{kind.itemsize}", kept, persistent=False)
        if self._is_training_loss:
            self.requires = frozenset({"nll", "loss", "loss_weight"})
        self._loss_options = f"label_smoothing={label_smoothing}, class_weight={readable(self.class_weight)}"

    @property
    def class_weight(self) -> Tensor | None:
        """The weights of the classes, ``(V,)`` in the widest float of the metric's device."""
        if self._class_weight_8 is None:
            return None
        kind = widest_float(self._class_weight_8.device)
        bits: Tensor = getattr(self, f"_class_weight_{kind.itemsize}")
        return bits.view(kind)

    @property
    def _is_training_loss(self) -> bool:
        return bool(self.label_smoothing) or self.class_weight is not None

    def scoring_options(self) -> dict[str, Any]:
        if not self._is_training_loss:
            return {}
        return {"label_smoothing": self.label_smoothing, "class_weight": self.class_weight}

    def sum_names(self) -> tuple[str | SharedSum, str | SharedSum]:
        if not self._is_training_loss:
            return super().sum_names()
        return f"loss({self._loss_options})", f"loss_weight({self._loss_options})"

    def per_token(self, scores: TokenScores) -> Tensor:
        if not self._is_training_loss:
            return super().per_token(scores)
        assert scores.loss is not None
        return scores.loss

    def denominator(self, scores: TokenScores) -> Tensor:
        if not self._is_training_loss:
            return super().denominator(scores)
        assert scores.loss_weight is not None
        return scores.loss_weight

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        nats = super().value(sums)
        return nats / math.log(2) if self.unit == "bits" else nats


class Perplexity(_NatsPerToken):
    """Perplexity = exp(−Σ_t w_t ln p(target_t) / Σ_t w_t), per token: the exponential of the cross entropy.

    It is per token, so it can't be compared between tokenizers; `bits_per_byte` can. `exp` is taken once, in float64, of
    the mean over everything added; the average of the batches' perplexities is a different number.

    Shapes: logits ``(…, V)``, target ``(…)``. Reference: Jelinek et al. (1977).

    >>> metric = Perplexity()
    >>> metric.update(torch.zeros(2, 8), torch.tensor([1, 2]))
    >>> metric.compute()        # uniform over 8
    tensor(8.0000, dtype=torch.float64)
    """

    name = "perplexity"
    formula = "exp(−Σ ln p(target) / tokens)"
    latex = r"\exp\left(-\frac{1}{N} \sum_t \ln p_t(y_t)\right)"
    value_unit = "per token"
    value_range = (1.0, math.inf)
    reference = "Jelinek et al. (1977), Perplexity: a measure of the difficulty of speech recognition tasks"
    use_when = (
        "Where tables report it. It is the cross entropy on a scale on which a uniform choice among k tokens is k."
    )
    hides = (
        "All that the cross entropy hides. The same ratio is a larger difference at a high perplexity than at a low "
        "one. An average of the perplexities of batches or documents is another number."
    )
    interval_scale = "log"

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(super().value(sums))
