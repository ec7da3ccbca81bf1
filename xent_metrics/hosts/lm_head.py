"""The head of a Hugging Face model: from the last hidden states to the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.inputs import LOGITS_DTYPES
from xent_metrics.scoring.score import score_hidden_states
from xent_metrics.scoring.scores import TokenScores

__all__ = ["Head"]


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale · (h Wᵀ + b)) of hidden states h, where softcap(x) = c · tanh(x / c)."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head that the output embeddings and the configuration describe. `verify` checks that this is all of it."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.dtype not in LOGITS_DTYPES or weight.is_meta:
            dtype = f" of {weight.dtype}" if isinstance(weight, Tensor) else ""
            raise InvalidInputError(
                f"the output embeddings are {type(layer).__name__}{dtype}, whose weights can't be read"
            )
        softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(weight, getattr(layer, "bias", None), _scale(config), softcap)

    def logits(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """The logits ``(N, V)`` of hidden states ``(N, H)``, rounded to `dtype` at every step, as the model does it."""
        states = states.to(self.weight.device, torch.promote_types(states.dtype, self.weight.dtype))
        bias = None if self.bias is None else self.bias.to(states.dtype)
        logits = nn.functional.linear(states, self.weight.to(states.dtype), bias).to(dtype)
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def score(self, states: Tensor, target: Tensor, **options: Any) -> TokenScores:
        """Score targets ``(…)`` under hidden states ``(…, H)``, on the head's device; options as for `score_hidden_states`."""
        device = self.weight.device
        return score_hidden_states(
            states.to(device),
            self.weight,
            target.to(device),
            bias=self.bias,
            logit_scale=self.scale,
            logit_softcap=self.softcap,
            **options,
        )


def _scale(config: Any) -> float | None:
    """The factor of the logits; None means 1."""
    if (
        scaling := getattr(config, "logits_scaling", None)
    ) is not None:  # Granite divides by it, HyperCLOVA X multiplies
        return float(scaling) if config.model_type.startswith("hyperclovax") else 1 / float(scaling)
    names = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse
    factor = next((factor for name in names if (factor := getattr(config, name, None)) is not None), None)
    return None if factor is None else float(factor)
