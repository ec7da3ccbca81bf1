"""What this package uses of transformers that it doesn't document: one function for each private name.

When one of them moves, the tests of this module fail, and the docstring says what to look for. lm-eval's names are in
`hosts/lm_eval/upstream.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import masking_utils

__all__ = ["attention_implementation", "without_looking_for_packed_texts"]

_not_packed: ContextVar[bool] = ContextVar("_not_packed", default=False)


def attention_implementation(config: Any) -> str | None:
    """The name of the attention that a model runs, such as "sdpa" or "eager".

    `PretrainedConfig._attn_implementation`, read in transformers 5.23. If it moves, look at what
    `PreTrainedModel.set_attn_implementation` sets.
    """
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


@contextmanager
def without_looking_for_packed_texts() -> Iterator[None]:
    """Let transformers take each row for one text inside, which it would otherwise read from the device in every forward.

    `masking_utils.find_packed_sequence_indices`, read in transformers 5.23, is wrapped once in a process; outside of this
    context, and in other threads, it does what it did. If it moves, every batch waits for the device once or twice more.
    """
    found = getattr(masking_utils, "find_packed_sequence_indices", None)
    if found is not None and not hasattr(found, "__wrapped__"):

        @wraps(found)
        def find(position_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            return None if _not_packed.get() else found(position_ids, *args, **kwargs)

        masking_utils.find_packed_sequence_indices = find
    token = _not_packed.set(True)
    try:
        yield
    finally:
        _not_packed.reset(token)
