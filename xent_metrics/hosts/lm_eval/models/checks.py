"""Refuse models, windows and ids that can't be scored, before any request runs.

Stock `hf` accepts most of these, and fails later or gives wrong numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.tokenizers import ids_needed, tokenizer_label
from xent_metrics.hosts.lm_eval.models.windows import Window

__all__ = ["check_backend", "check_ids", "check_module", "check_positions", "check_prefix_token", "check_stride"]


def check_backend(config: Any, backend: str) -> None:
    """Raise unless the model is a causal one, whatever its class is called."""
    encodes = getattr(config, "is_encoder_decoder", False)
    if backend == "causal" and not encodes:
        return
    if encodes:
        got = f"{config.model_type} is an encoder-decoder. Use `--model hf`"
    else:
        got = f"got backend={backend!r} for {config.model_type}. Leave backend out"
    raise InvalidInputError(f"xent-hf scores causal language models; {got}")


def check_positions(model: Any, max_length: int) -> None:
    """Raise if a table of learned positions is shorter than a window.

    Computed positions have no end, and the positions of image patches don't count for text.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for name, table in decoder.named_modules():
        learned = ("wpe" in name or "position" in name) and "relative" not in name
        if learned and isinstance(table, nn.Embedding) and table.num_embeddings < max_length:
            raise InvalidInputError(
                f"max_length={max_length} is more than the {table.num_embeddings} positions of {name}; lower max_length"
            )


def check_prefix_token(prefix_token: int | None, num_ids: int) -> None:
    """Raise if the id that begins a text isn't one of the model's."""
    if prefix_token is not None and not 0 <= prefix_token < num_ids:
        raise InvalidInputError(
            f"prefix_token_id is one of the model's {num_ids} ids, 0 to {num_ids - 1}; got {prefix_token}"
        )


def check_stride(stride: Any, max_length: int) -> None:
    """Raise unless a window can predict `stride` new ids."""
    if stride is not None and not (type(stride) is int and 1 <= stride <= max_length):
        raise InvalidInputError(f"stride lies between 1 and max_length={max_length} tokens; got {stride!r}")


def check_ids(windows: Sequence[Window], num_ids: int, *, tokenizer: Any) -> None:
    """Raise if the tokenizer gave an id that the model doesn't have."""
    largest = max(max(*window.inputs, *window.targets) for window in windows)
    if largest >= num_ids:
        raise InvalidInputError(
            f"{tokenizer_label(tokenizer)} gives the id {largest}, and the model has {num_ids} ids; pass the tokenizer that it "
            "was trained with"
        )


def check_module(forward: Forward, *, prefix_token: int, tokenizer: Any, max_length: int) -> int:
    """The number of logits V of a module, after two short rows have shown that it suits the tokenizer and is causal."""
    logits = _first_logits(forward, prefix_token, max_length)
    needed = max(prefix_token + 1, ids_needed(tokenizer))
    if logits.shape[-1] < needed:
        raise InvalidInputError(
            f"{forward.name} gives {logits.shape[-1]} logits; {tokenizer_label(tokenizer)} needs {needed}"
        )
    if not torch.allclose(logits[0, 0].float(), logits[1, 0].float(), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise InvalidInputError(
            f"{forward.name} looks ahead: its first logits change with the second id. "
            "Loglikelihoods need a causal model: logits[t] may depend only on the ids up to t"
        )
    return int(logits.shape[-1])


def _first_logits(forward: Forward, prefix_token: int, max_length: int) -> Tensor:
    """The logits of two rows that differ in their second id."""
    ids = torch.tensor([[prefix_token, prefix_token], [prefix_token, int(prefix_token == 0)]])[:, :max_length]
    try:
        return forward.logits_of(ids)
    except IndexError as error:
        raise InvalidInputError(
            f"{forward.name} doesn't take the id {prefix_token}, which begins a text: {error}. "
            "A model of bytes needs 257 ids; prefix_token_id=… names another one"
        ) from error
