"""What this package uses of lm-eval and transformers that they don't document: one function for each private name.

When one of them moves, the tests of this module fail, and the docstring says what to look for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["attention_implementation", "encode_pair", "set_max_length", "set_rank"]


def encode_pair(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context and of its continuation, which takes over the spaces that end the context.

    `TemplateLM._encode_pair`, read in lm-eval 0.4.13. If it moves, look at where `TemplateLM.loglikelihood` splits the ids.
    """
    before, after = lm._encode_pair(context, continuation)
    return list(before), list(after)


def set_max_length(lm: Any, max_length: int) -> None:
    """Fix the most ids that an `HFLM` reads at once.

    `HFLM._max_length`, read in lm-eval 0.4.13. If it moves, look at the property `HFLM.max_length`.
    """
    lm._max_length = max_length


def set_rank(lm: Any, rank: int, world_size: int) -> None:
    """Say which share of the documents this process scores.

    `LM._rank` and `LM._world_size`, read in lm-eval 0.4.13. If they move, look at the properties `LM.rank` and `LM.world_size`.
    """
    lm._rank, lm._world_size = rank, world_size


def attention_implementation(config: Any) -> str | None:
    """The name of the attention that a model runs, such as "sdpa" or "eager".

    `PretrainedConfig._attn_implementation`, read in transformers 5.23. If it moves, look at what
    `PreTrainedModel.set_attn_implementation` sets.
    """
    name: str | None = getattr(config, "_attn_implementation", None)
    return name
