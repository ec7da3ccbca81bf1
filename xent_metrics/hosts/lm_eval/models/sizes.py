"""Sizes that follow from a model and its device: what sharing costs there, and how many ids a batch may hold.

On CPUs they are constants, which were measured. On other devices they are estimated from the model's configuration, and
weren't measured on any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]

from xent_metrics.hosts.lm_eval.models.packing import Costs

__all__ = ["bytes_per_id", "costs_on", "free_memory", "ids_that_fit", "is_out_of_memory"]

#: Masked attention reaches about this share of the speed of matrix products.
_ATTENTION_SPEED = 0.2
#: Tokens that take as long to compute as the weights take to be read (speed / bandwidth), for a prefix and its own batch.
_PREFIX_OVERHEAD = 2 * 256
#: The most ids of a batch. More are no faster, and the first results would come late.
_MOST_IDS = 2**16
_OF_FREE_MEMORY = 0.5


def costs_on(device: torch.device, config: Any) -> Costs:
    """What sharing costs a model with this configuration on a device.

    A token's matrix products take 2 operations per weight of a layer, and a pair's attention 4 per channel of the heads.

    >>> from transformers import LlamaConfig
    >>> costs_on(torch.device("cuda"), LlamaConfig()).pairs_per_token       # of 7B parameters: 1.2 hidden sizes
    4940.8
    """
    if device.type == "cpu":
        return Costs()
    sizes = _Sizes(config)
    pairs = _ATTENTION_SPEED * 2 * sizes.weights / (4 * sizes.queries)
    return Costs(pairs_per_token=pairs, prefix_overhead=_PREFIX_OVERHEAD, branches_apart=True)


def bytes_per_id(
    config: Any, itemsize: int, *, longest: int, logits: bool = False, packing: bool = False, caching: bool = False
) -> int:
    """About how much memory a forward needs for each id of a batch.

    Args:
        config: the model's configuration.
        itemsize: the bytes of a number.
        longest: the ids of the longest row.
        logits: whether the logits of every id are made.
        packing: whether rows may branch, which takes a dense mask.
        caching: whether keys and values of all layers are kept.
    """
    sizes = _Sizes(config)
    layer = itemsize * (4 * sizes.hidden + 2 * (sizes.queries + sizes.keys) + 3 * sizes.inner) + 8 * sizes.hidden
    cache = 2 * itemsize * sizes.layers * sizes.keys if caching else 0
    mask = longest * (1 + itemsize) if packing else 0
    scores = (itemsize + 4) * int(config.vocab_size) if logits else 0
    return layer + cache + mask + scores


def is_out_of_memory(error: Exception) -> bool:
    """True if a forward failed because its batch doesn't fit into the memory of its device.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), is_out_of_memory(RuntimeError("size 4"))
    (True, False)
    """
    mps = "MPS backend out of memory" in str(error)  # accelerate 1.13 and older don't know it
    return mps or isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def ids_that_fit(free: int, per_id: int) -> int:
    """The ids of a batch for so much free memory, of which half is left alone; at least 1.

    >>> ids_that_fit(8 * 2**30, 300_000), ids_that_fit(80 * 2**30, 300_000)
    (14316, 65536)
    """
    return max(1, min(_MOST_IDS, int(free * _OF_FREE_MEMORY / per_id)))


def free_memory(devices: Iterable[torch.device]) -> int | None:
    """The free memory of the fullest device in bytes, with what torch holds in reserve; None if a device doesn't say."""
    found = []
    for device in devices:
        module: Any = getattr(torch, device.type, None)
        if not hasattr(module, "mem_get_info"):
            return None
        free, _ = module.mem_get_info(device)
        found.append(int(free + module.memory_reserved(device) - module.memory_allocated(device)))
    return min(found, default=None)


class _Sizes:
    """The sizes of a model's layers by its configuration; those that it doesn't state are the usual ones."""

    def __init__(self, config: Any) -> None:
        def stated(*names: str, default: int) -> int:
            values = (getattr(config, name, None) for name in names)
            return next((int(value) for value in values if isinstance(value, int) and value), default)

        self.hidden = stated("hidden_size", default=4096)
        self.layers = stated("num_hidden_layers", default=32)
        heads = stated("num_attention_heads", default=32)
        channels = stated("head_dim", default=max(1, self.hidden // heads))
        self.queries = heads * channels
        self.keys = stated("num_key_value_heads", default=heads) * channels
        self.inner = stated("intermediate_size", "ffn_dim", "n_inner", default=4 * self.hidden)
        if active := stated("num_experts_per_tok", default=0):
            self.inner = active * stated("moe_intermediate_size", default=self.inner)

    @property
    def weights(self) -> int:
        """Of one layer, as a token meets them, with a gated feed-forward part."""
        return 2 * self.hidden * (self.queries + self.keys) + 3 * self.hidden * self.inner
