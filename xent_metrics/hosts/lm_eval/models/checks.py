"""What `hf` takes and fails with later, or answers wrongly: models, windows and ids that `xent-hf` refuses at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.windows import Window

__all__ = ["check_backend", "check_ids", "check_positions", "check_prefix"]


def check_backend(config: Any, backend: str) -> None:
    """A causal model, whatever it is called."""
    encodes = getattr(config, "is_encoder_decoder", False)
    if backend == "causal" and not encodes:
        return
    if encodes:
        got = f"{config.model_type} is an encoder-decoder. Use `--model hf`"
    else:
        got = f"got backend={backend!r} for {config.model_type}. Leave backend out"
    raise InvalidInputError(f"xent-hf scores causal language models; {got}")


def check_positions(model: Any, max_length: int) -> None:
    """Learned positions end somewhere; computed ones don't, and those of an image's patches are none of a text."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for name, table in decoder.named_modules():
        learned = ("wpe" in name or "position" in name) and "relative" not in name
        if learned and isinstance(table, nn.Embedding) and table.num_embeddings < max_length:
            raise InvalidInputError(
                f"max_length={max_length} is more than the {table.num_embeddings} positions of {name}; lower max_length"
            )


def check_prefix(prefix: int | None, num_ids: int) -> None:
    """An id that the model has."""
    if prefix is not None and not 0 <= prefix < num_ids:
        raise InvalidInputError(
            f"prefix_token_id is one of the model's {num_ids} ids, 0 to {num_ids - 1}; got {prefix}"
        )


def check_ids(windows: Sequence[Window], num_ids: int, *, tokenizer_name: str) -> None:
    """Every id has its embedding."""
    largest = max(max(*window.inputs, *window.targets) for window in windows)
    if largest >= num_ids:
        raise InvalidInputError(
            f"{tokenizer_name} gives the id {largest}, and the model has {num_ids} ids; pass the tokenizer that it was "
            "trained with"
        )
