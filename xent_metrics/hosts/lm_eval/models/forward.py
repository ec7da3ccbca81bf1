"""From rows of ids to scores, by the shortest way that has been checked: `Forward`.

Ways to run less, each switched on only where probe.py has seen that it agrees with the model's own forward:

    hidden     the base model gives hidden states, and the scored ones alone meet `lm_head` (`score_hidden_states`)
    packing    a tree of windows in one row, by a 4-D mask and position ids
    caching    rows behind a stem whose keys and values are kept
    layers     parts of the layers are a plugin's (layers.py)

Without any of them this is ``model(ids).logits``, as stock `hf` runs it, and its scored positions alone are looked at.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.layers import Layers, may_replace
from xent_metrics.hosts.lm_eval.models.packing import Row
from xent_metrics.scoring.score import score_hidden_states, score_tokens
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["Forward", "Head"]


#: What a configuration calls its experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Turn:
    """Where rotary positions turn to other frequencies, for all ids of a batch: if one of its windows is longer than that.

    Attributes:
        length: the longest window of the first frequencies.
        once: all longer windows have the same others (LongRoPE), and not each its own (dynamic NTK).
    """

    length: int
    once: bool

    @classmethod
    def of(cls, config: Any) -> Turn | None:
        """As the configuration of a model has it, if its positions turn."""
        found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        kinds = [found, *(value for value in found.values() if isinstance(value, Mapping))]  # one for each layer type
        named = {kind.get("rope_type", kind.get("type")): kind for kind in kinds}
        turning = [name for name in ("longrope", "dynamic") if name in named]
        if not turning:
            return None
        lengths = [named[name].get("original_max_position_embeddings") for name in turning]
        lengths += [
            getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")
        ]
        return cls(min(length for length in lengths if length), once=turning == ["longrope"])


@dataclass(frozen=True)
class Head:
    """What stands between the last hidden states and the logits: softcap(scale · (h Wᵀ + b))."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """As the model's output embeddings and configuration say; whether that is all of it, the probe finds out."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
            raise InvalidInputError(f"the output embeddings are {type(layer).__name__}, whose weights can't be read")
        softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(weight, getattr(layer, "bias", None), _scale(config), softcap)


def _scale(config: Any) -> float | None:
    """What the logits are multiplied by; None is 1."""
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        return float(factor)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        return 1 / float(divisor)
    factor = getattr(config, "lm_head_multiplier", None)  # Falcon-H1
    return None if factor is None else float(factor)


class Forward:
    """Runs rows through a causal model and scores what they predict.

    Args:
        model: the Hugging Face model, possibly adapted by PEFT.
        device: where the ids go.
        autocast: the dtype of mixed precision, if any.
        wider: a dtype wider than float32 in which probabilities are wanted, if any.
        bytes_table: UTF-8 bytes by id, given the number of logits; None for a tokenizer that can't be counted.

    Attributes:
        extra_scores: extra scores of each token, for the calls that follow. They come from a pass of their own, so that they
            change no bit of the others.
        rounding: how far rounding alone moves hidden states (or logits), relatively, as far as that was measured.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        wider: torch.dtype | None = None,
        bytes_table: Callable[[int], Tensor | None] = lambda vocab_size: None,
    ) -> None:
        self.model, self.device, self.autocast, self.wider = model, device, autocast, wider
        self.hidden = self.packing = self.caching = self.layers = False
        self.head: Head | None = None
        self._layers: Layers | None = None
        self.extra_scores: Mapping[str, ExtraScore] = {}
        self.rounding = 0.0
        self._bytes_table = bytes_table
        self._tables: dict[int, Tensor | None] = {}
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = self._causal.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        self.window: int | None = window if not kinds or "sliding_attention" in kinds else None
        self._mixed = len(kinds) > 1
        self._additive = getattr(config, "_attn_implementation", None) == "eager"
        self.turn = Turn.of(config)

    @property
    def name(self) -> str:
        return type(self._causal).__name__

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        dtype: torch.dtype = self.autocast or self._causal.dtype
        return dtype

    @property
    def is_quantized(self) -> bool:
        """Whether weights are quantized: many such layers scale by what they see at once."""
        kinds = (torch.ao.nn.quantized.dynamic.Linear, torch.ao.nn.quantized.Linear)
        stated = getattr(self._causal.config.get_text_config(), "quantization_config", None)
        return bool(stated) or any(isinstance(module, kinds) for module in self._causal.modules())

    @property
    def rounds_by_neighbours(self) -> bool:
        """Whether other ids of a batch may change how a position is rounded: those of an expert run together."""
        config = self._causal.config.get_text_config()
        parts = (config, getattr(config, "ffn_config", None))
        return self.is_quantized or any(getattr(part, name, None) for part in parts for name in _EXPERTS)

    def find_head(self) -> None:
        """Find the parts of the model that the hidden-state route needs; raises where there is no such part."""
        if self._causal.base_model is self._causal:
            raise InvalidInputError("the model has no base model apart from its head")
        self.head = Head.of(self._causal)

    @property
    def has_backends(self) -> bool:
        """Whether plugins may compute parts of the layers."""
        return self.autocast is None and may_replace(self.model)

    def find_layers(self) -> None:
        """Find those parts."""
        self._layers = Layers(self.model)

    @property
    def module(self) -> nn.Module:
        """What is run: the base model, or the whole of it."""
        module: nn.Module = self._causal.base_model if self.hidden else self.model
        return module

    # Running.

    @torch.no_grad()
    def stem(self, ids: Sequence[int]) -> Any:
        """The keys and values of a stem."""
        tokens = torch.tensor([ids], device=self.device)
        # Behind a stem of its own mask, a row may see any of it: nothing may have slid out of the cache.
        own = {"past_key_values": DynamicCache()} if self.packing else {}
        return self._run(tokens, use_cache=True, **own).past_key_values

    @torch.no_grad()
    def states(self, rows: Sequence[Row], stem: Any = None) -> Tensor:
        """The hidden states (or logits) that predict the rows' targets, in the order of their places, ``(N, H or V)``."""
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row.tokens)
        output = self._run(ids.to(self.device), **self._arguments(rows, length, stem))
        found = output[0] if self.hidden else getattr(output, "logits", None)
        if not isinstance(found, Tensor) or found.ndim != 3:
            raise InvalidInputError(
                f"{self.name} gives no logits of every position (B, T, V); expected a causal language model with its head, "
                "such as AutoModelForCausalLM loads"
            )
        virtual = found.shape[1] - length  # the virtual tokens of a prompt-tuned model
        wanted = [
            i * found.shape[1] + virtual + column
            for i, row in enumerate(rows)
            for _, columns, _ in row.places
            for column in columns
        ]
        picked: Tensor = found.flatten(0, 1)[torch.tensor(wanted, device=found.device)]
        return picked

    def _run(self, ids: Tensor, **arguments: Any) -> Any:
        layers = self._layers.used() if self.layers and self._layers is not None else nullcontext()
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None), layers:
            return self.module(ids, **arguments)

    def _arguments(self, rows: Sequence[Row], length: int, stem: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if stem is not None:
            # Copied: the forward writes the rows' own keys into it.
            cache = copy.deepcopy(stem)
            cache.batch_repeat_interleave(len(rows))
            arguments = {"past_key_values": cache, "use_cache": True}
        elif self.hidden or self.packing:
            arguments = {"use_cache": False}
        if self.packing and (stem is not None or not all(row.is_chain for row in rows)):
            arguments |= self._tree(rows, length)
        return arguments

    def _tree(self, rows: Sequence[Row], length: int) -> dict[str, Any]:
        """The block mask ``(B, 1, S, stem + S)`` and the position ids ``(B, S)``."""
        stem = rows[0].stem
        depths = torch.zeros(len(rows), length, dtype=torch.long)
        seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row without a key
        for i, row in enumerate(rows):
            depths[i, : len(row)] = torch.tensor(row.depths)
            seen[i, : len(row), : len(row)] = row.sees()
        seen = torch.cat([torch.ones(len(rows), length, stem, dtype=torch.bool), seen], dim=-1)
        full = self._mask(seen)
        if self.window is None:
            return {"attention_mask": full, "position_ids": depths.to(self.device)}
        keys = torch.cat([torch.arange(stem).expand(len(rows), -1), depths], dim=-1)
        sliding = self._mask(seen & (depths[:, :, None] - keys[:, None, :] < self.window))
        mask = {"full_attention": full, "sliding_attention": sliding} if self._mixed else sliding
        return {"attention_mask": mask, "position_ids": depths.to(self.device)}

    def _mask(self, seen: Tensor) -> Tensor:
        mask = seen[:, None].to(self.device)
        if not self._additive:
            return mask
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~mask, hidden)

    def logits(self, states: Tensor) -> Tensor:
        """The logits of hidden states, in the model's dtype to the last step, as it computes its own."""
        assert self.head is not None
        head = self.head
        states = states.to(head.weight.device, torch.promote_types(states.dtype, head.weight.dtype))
        bias = None if head.bias is None else head.bias.to(states.dtype)
        logits = nn.functional.linear(states, head.weight.to(states.dtype), bias).to(self.dtype)
        if head.scale is not None:
            logits = logits * head.scale
        return logits if head.softcap is None else (logits / head.softcap).tanh() * head.softcap

    # Scoring.

    def score(self, states: Tensor, targets: Sequence[int]) -> TokenScores:
        """The scores of targets under hidden states or logits, in float32 or wider, on the CPU."""
        if self.wider is not None:
            states = states.to(self.wider)
        scores = self._scored(states, targets)
        if self.extra_scores:
            scores = dataclasses.replace(
                scores, extra_scores=self._scored(states, targets, self.extra_scores).extra_scores
            )
        return scores.to("cpu")

    def _scored(
        self, states: Tensor, targets: Sequence[int], extra_scores: Mapping[str, ExtraScore] | None = None
    ) -> TokenScores:
        head = self.head if self.hidden else None
        if head is None:
            target = torch.tensor(targets, device=states.device)
            return score_tokens(
                states, target, token_bytes=self._num_bytes(states.shape[-1]), extra_scores=extra_scores
            )
        return score_hidden_states(
            states.to(head.weight.device),
            head.weight,
            torch.tensor(targets, device=head.weight.device),
            bias=head.bias,
            logit_scale=head.scale,
            logit_softcap=head.softcap,
            token_bytes=self._num_bytes(len(head.weight)),
            extra_scores=extra_scores,
        )

    def _num_bytes(self, vocab_size: int) -> Tensor | None:
        """UTF-8 bytes by id, asked for once."""
        if vocab_size not in self._tables:
            self._tables[vocab_size] = self._bytes_table(vocab_size)
        return self._tables[vocab_size]
