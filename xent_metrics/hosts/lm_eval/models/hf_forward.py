"""Run rows of ids through a Hugging Face model, with shortcuts: `HFForward`.

A shortcut is on only if verify.py found that it agrees with the model's own forward:

    hidden       the base model gives hidden states, and only scored positions go through `lm_head`
    packing      several windows run in one row, as a tree, with a 4-D mask and position ids
    caching      rows reuse the cached keys and values of a prefix
    context_on   the model runs within a plugin's `forward_context`

Without them it runs ``model(ids).logits``, as stock `hf` does, and scores the positions that are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.head import Head
from xent_metrics.hosts.lm_eval.models.packing import Row
from xent_metrics.hosts.lm_eval.models.rope_switch import RopeSwitch
from xent_metrics.hosts.lm_eval.models.upstream import attention_implementation
from xent_metrics.scoring.backends import first_result
from xent_metrics.scoring.score import score_hidden_states
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["HFForward"]

#: What configurations call their number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class HFForward(Forward):
    """`Forward` of a Hugging Face model, with shortcuts.

    Args:
        model: the model, possibly adapted by PEFT.
        device: where the ids go.
        autocast: the dtype of mixed precision, if any.
        score_dtype: a dtype wider than float32 for the probabilities, if any.
        bytes_table: as for `Forward`.

    Attributes:
        hidden, packing, caching, context_on: the shortcuts, all off at first; `verify` switches them on.
        head: the model's head, after `find_head`.
        window: the size of the sliding window, if the model has one.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        score_dtype: torch.dtype | None = None,
        bytes_table: Callable[[int], Tensor | None] = lambda vocab_size: None,
    ) -> None:
        super().__init__(model, device=device, bytes_table=bytes_table)
        self.autocast, self.score_dtype = autocast, score_dtype
        self.hidden = self.packing = self.caching = self.context_on = False
        self.head: Head | None = None
        self._plugin_context: AbstractContextManager[Any] | None = None
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        kinds = set(getattr(self._config, "layer_types", None) or ())
        slides = getattr(self._config, "use_sliding_window", True) and (not kinds or "sliding_attention" in kinds)
        self.window: int | None = getattr(self._config, "sliding_window", None) if slides else None
        self._mixed = len(kinds) > 1
        self._additive = attention_implementation(self._config) == "eager"
        self.rope_switch = RopeSwitch.of(self._config)

    @property
    def _config(self) -> Any:
        return self._causal.config.get_text_config()

    @property
    def name(self) -> str:
        """The name of the model's class, without PEFT's wrapper."""
        return type(self._causal).__name__

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.autocast or self._causal.dtype
        return dtype

    @property
    def is_quantized(self) -> bool:
        """True if weights are quantized. Many such layers scale by all ids of a batch."""
        kinds = (torch.ao.nn.quantized.dynamic.Linear, torch.ao.nn.quantized.Linear)
        stated = getattr(self._config, "quantization_config", None)
        return bool(stated) or any(isinstance(module, kinds) for module in self._causal.modules())

    @property
    def rounds_by_neighbours(self) -> bool:
        """True if other ids of a batch can change how a position is rounded, as in experts, which run their ids together."""
        parts = (self._config, getattr(self._config, "ffn_config", None))
        return self.is_quantized or any(getattr(part, name, None) for part in parts for name in _EXPERTS)

    def find_head(self) -> None:
        """Find the head that `hidden` needs; raises `InvalidInputError` if the model has no separate base model."""
        if self._causal.base_model is self._causal:
            raise InvalidInputError("the model has no base model apart from its head")
        self.head = Head.of(self._causal)

    def find_context(self) -> bool:
        """Ask the plugins for a `forward_context`; True if one of them gives one.

        With mixed precision they aren't asked, because the model alone doesn't show it.

        Raises:
            PluginError: the hook raised; names the plugin.
        """
        self._plugin_context = None if self.autocast else first_result("forward_context", model=self.model)
        return self._plugin_context is not None

    @property
    def module(self) -> nn.Module:
        """The module that is run: the base model if `hidden` is on, otherwise the whole model."""
        module: nn.Module = self._causal.base_model if self.hidden else self.model
        return module

    # Running.

    @torch.no_grad()
    def prefix_cache(self, prefix: Sequence[int]) -> Any:
        tokens = torch.tensor([prefix], device=self.device)
        # Our mask attends to the whole prefix, so the cache must not slide.
        own = {"past_key_values": DynamicCache()} if self.packing else {}
        return self._run(tokens, use_cache=True, **own).past_key_values

    def _outputs(self, rows: Sequence[Row], cache: Any) -> Tensor:
        output = self._run(self._ids(rows).to(self.device), **self._arguments(rows, cache))
        found = output[0] if self.hidden else getattr(output, "logits", None)
        if not isinstance(found, Tensor) or found.ndim != 3:
            raise InvalidInputError(
                f"{self.name} gives no logits of every position (B, T, V); expected a causal language model with its head, "
                "such as AutoModelForCausalLM loads"
            )
        return found

    def _run(self, ids: Tensor, **arguments: Any) -> Any:
        own = self._plugin_context if self.context_on else None
        by_plugin = nullcontext() if own is None else own
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None), by_plugin:
            return self.module(ids, **arguments)

    def _arguments(self, rows: Sequence[Row], cache: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if cache is not None:
            cache = copy.deepcopy(cache)  # the forward writes the keys of the rows into it
            cache.batch_repeat_interleave(len(rows))
            arguments = {"past_key_values": cache, "use_cache": True}
        elif self.hidden or self.packing:
            arguments = {"use_cache": False}
        if self.packing and (cache is not None or not all(row.is_chain for row in rows)):
            arguments |= self._tree(rows)
        return arguments

    def _tree(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The block mask ``(B, 1, S, prefix + S)`` and the position ids ``(B, S)``."""
        length, prefix = self._length(rows), rows[0].prefix
        depths = torch.zeros(len(rows), length, dtype=torch.long)
        seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: every row needs a key
        for i, row in enumerate(rows):
            depths[i, : len(row)] = torch.tensor(row.depths)
            seen[i, : len(row), : len(row)] = row.sees()
        seen = torch.cat([torch.ones(len(rows), length, prefix, dtype=torch.bool), seen], dim=-1)
        full = self._mask(seen)
        if self.window is None:
            return {"attention_mask": full, "position_ids": depths.to(self.device)}
        keys = torch.cat([torch.arange(prefix).expand(len(rows), -1), depths], dim=-1)
        sliding = self._mask(seen & (depths[:, :, None] - keys[:, None, :] < self.window))
        mask = {"full_attention": full, "sliding_attention": sliding} if self._mixed else sliding
        return {"attention_mask": mask, "position_ids": depths.to(self.device)}

    def _mask(self, seen: Tensor) -> Tensor:
        mask = seen[:, None].to(self.device)
        if not self._additive:
            return mask
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~mask, hidden)

    # Scoring.

    def score(self, states: Tensor, targets: Sequence[int]) -> TokenScores:
        return super().score(states if self.score_dtype is None else states.to(self.score_dtype), targets)

    def _scored(
        self, states: Tensor, targets: Sequence[int], extra_scores: Mapping[str, ExtraScore] | None = None
    ) -> TokenScores:
        head = self.head if self.hidden else None
        if head is None:
            return super()._scored(states, targets, extra_scores)
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
