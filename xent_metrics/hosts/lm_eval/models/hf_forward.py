"""Run rows of ids through a Hugging Face model, with shortcuts: `HFForward`.

A shortcut is on only if verify.py found that it agrees with the model's own forward:

    hidden       the base model gives hidden states, and only scored positions go through `lm_head`
    packing      several windows run in one row, as a tree, with a mask (masks.py) and position ids
    caching      rows reuse the cached keys and values of a prefix
    end_to_end   rows that don't branch run end to end, without padding, if the model's attention has varlen
    context_on   the model runs within a plugin's `forward_context`

Without them it runs ``model(ids).logits``, as stock `hf` does, and scores the positions that are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.masks import Trees
from xent_metrics.hosts.lm_eval.models.packing import Row
from xent_metrics.hosts.lm_eval.models.rope_switch import RopeSwitch
from xent_metrics.hosts.lm_eval.models.sizes import bytes_per_id, costs_on, free_memory, ids_that_fit
from xent_metrics.hosts.lm_eval.models.transfer import send
from xent_metrics.hosts.lm_eval.models.upstream import attention_implementation, without_looking_for_packed_texts
from xent_metrics.hosts.lm_head import Head
from xent_metrics.scoring.backends import first_result
from xent_metrics.scoring.inputs import LOGITS_DTYPES
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["HFForward", "repeated"]

#: What configurations call their number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

#: Layers of a cache that put new tensors in place of their keys and values, and write into none.
_REPLACING = (DynamicLayer, DynamicSlidingWindowLayer)


class HFForward(Forward):
    """`Forward` of a Hugging Face model, with shortcuts.

    Args:
        model: the model, possibly adapted by PEFT.
        device: where the ids go.
        autocast: the dtype of mixed precision, if any.
        score_dtype: a dtype wider than float32 for the probabilities, if any.
        bytes_table: as for `Forward`.

    Attributes:
        hidden, packing, caching, end_to_end, context_on: the shortcuts, all off at first; `verify` switches them on.
        head: the model's head, after `find_head`.
        attention: the name of the model's attention, such as "sdpa".
        varlen: whether the model's attention takes rows end to end.
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
        self.hidden = self.packing = self.caching = self.end_to_end = self.context_on = False
        self.head: Head | None = None
        self._plugin_context: AbstractContextManager[Any] | None = None
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        kinds = set(getattr(self._config, "layer_types", None) or ())
        slides = getattr(self._config, "use_sliding_window", True) and (not kinds or "sliding_attention" in kinds)
        self.window: int | None = getattr(self._config, "sliding_window", None) if slides else None
        self._mixed = len(kinds) > 1
        self.attention = attention_implementation(self._config) or ""
        self.varlen = self.attention.startswith("flash_attention")
        self._in_blocks = self.attention == "flex_attention" and not self.is_split
        self._additive = self.attention in ("eager", "flex_attention")
        self.costs = costs_on(device, self._config)
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
        stored = (parameter.dtype for parameter in self._causal.parameters())  # quantized ones are in other dtypes
        return self.autocast or next((dtype for dtype in stored if dtype in LOGITS_DTYPES), torch.float32)

    @property
    def embedding(self) -> nn.Module:
        """The module that gives the embeddings of ids."""
        embedding: nn.Module = cast(Any, self.model).get_input_embeddings()
        return embedding

    @property
    def devices(self) -> set[torch.device]:
        """The devices that hold the model, among which `device_map` splits it."""
        return {parameter.device for parameter in self._causal.parameters()}

    @property
    def is_split(self) -> bool:
        """True if `device_map` split the model among devices."""
        return len(set((getattr(self._causal, "hf_device_map", None) or {}).values())) > 1

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

    def ids_that_fit(self, longest: int) -> int | None:
        """The ids of a batch, of rows of at most `longest`, for the free memory; None if a device doesn't say."""
        free = free_memory(device for device in self.devices if device.type not in ("cpu", "meta"))
        if free is None:
            return None
        options = {"logits": not self.hidden, "packing": self.packing, "caching": self.caching}
        return ids_that_fit(free, bytes_per_id(self._config, self.dtype.itemsize, longest=longest, **options))

    def find_head(self) -> None:
        """Find the head that `hidden` needs; raises `InvalidInputError` if the model has no separate base model."""
        if self._causal.base_model is self._causal:
            raise InvalidInputError("the model has no base model apart from its head")
        self.head = Head.of(self._causal)

    def find_context(self) -> bool:
        """Ask the plugins for a `forward_context`; True if one of them gives one.

        With mixed precision they aren't asked, because the model alone doesn't show it, nor if the model is split.

        Raises:
            PluginError: the hook raised; names the plugin.
        """
        asked = not self.autocast and not self.is_split
        self._plugin_context = first_result("forward_context", model=self.model) if asked else None
        return self._plugin_context is not None

    @property
    def module(self) -> nn.Module:
        """The module that is run: the base model if `hidden` is on, otherwise the whole model."""
        module: nn.Module = self._causal.base_model if self.hidden else self.model
        return module

    # Running.

    @torch.no_grad()
    def prefix_cache(self, prefix: Sequence[int]) -> Any:
        # Our mask attends to the whole prefix, so the cache must not slide.
        own = {"past_key_values": DynamicCache()} if self.packing else {}
        return self._run(send([[*prefix]], self.device), use_cache=True, **own).past_key_values

    def _outputs(self, rows: Sequence[Row], cache: Any) -> Tensor:
        arguments = self._arguments(rows, cache)
        joined = self._joined(rows)
        ids = send([[i for row in rows for i in row.tokens]] if joined else self._ids(rows), self.device)
        with nullcontext() if joined else without_looking_for_packed_texts():
            output = self._run(ids, **arguments)
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
            arguments = {"past_key_values": repeated(cache, len(rows)), "use_cache": True}
        elif self.hidden or self.packing:
            arguments = {"use_cache": False}
        if self._joined(rows):
            return arguments | self._lengths(rows)
        branches = self._in_blocks or cache is not None or not all(row.is_chain for row in rows)
        return arguments | (self._tree(rows) if self.packing and branches else {})

    # Rows end to end.

    def _joined(self, rows: Sequence[Row]) -> bool:
        """True if the rows run end to end."""
        return self.end_to_end and not any(row.prefix for row in rows) and all(row.is_chain for row in rows)

    def _starts(self, rows: Sequence[Row], width: int) -> list[int]:
        if not self._joined(rows):
            return super()._starts(rows, width)
        return [0, *accumulate(map(len, rows))][:-1]

    def _lengths(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Position ids that begin again with each row, and where that is, which saves flash attention a search per layer."""
        bounds = send(torch.tensor([0, *accumulate(map(len, rows))], dtype=torch.int32), self.device)
        longest = max(map(len, rows))
        return {
            "position_ids": send([[depth for row in rows for depth in row.depths]], self.device),
            "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip

    # Rows that branch.

    def _tree(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The mask and the position ids ``(B, S)``."""
        trees = self._trees(rows)
        mask = full = self._mask(trees, None) if self._mixed or self.window is None else None
        if self.window is not None:
            mask = self._mask(trees, self.window)
            mask = {"full_attention": full, "sliding_attention": mask} if self._mixed else mask
        return {"attention_mask": mask, "position_ids": trees.depths[:, trees.prefix :]}

    def _trees(self, rows: Sequence[Row]) -> Trees:
        length, prefix = self._length(rows), rows[0].prefix
        ends, depths = torch.zeros(2, len(rows), prefix + length, dtype=torch.long)
        ends[:, :prefix] = prefix + length
        ends[:, prefix:] = torch.arange(prefix + 1, prefix + length + 1)  # padding sees itself: every row needs a key
        depths[:, :prefix] = torch.arange(prefix)
        for i, row in enumerate(rows):
            own = slice(prefix, prefix + len(row))
            ends[i, own], depths[i, own] = prefix + torch.tensor(row.ends()), torch.tensor(row.depths)
        ends, depths = send(torch.stack([ends, depths]), self.device)
        return Trees(ends, depths, prefix)

    def _mask(self, trees: Trees, window: int | None) -> Any:
        if self._in_blocks:
            return trees.blocks(window)
        mask = trees.dense(window)
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
        device = head.weight.device
        table = self._num_bytes(len(head.weight), device)
        return head.score(states, send(targets, device), token_bytes=table, extra_scores=extra_scores)


def repeated(cache: Any, times: int) -> Any:
    """A copy of a prefix's cache with as many rows, which a forward may extend.

    Layers that replace their keys and values, as those of transformers do, get views; others get copies.
    """
    layers = getattr(cache, "layers", ())
    if not layers or type(cache) is not DynamicCache or any(type(layer) not in _REPLACING for layer in layers):
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(times)
        return cache
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in layers]
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = (x.expand(times, *x.shape[1:]) for x in (layer.keys, layer.values))
    return cache
