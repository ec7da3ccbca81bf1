"""Tokenizers of `TorchLM`: plain bytes, or any object with `encode` and `decode`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from xent_metrics.errors import InvalidInputError, TokenBytesError
from xent_metrics.hosts.lm_eval.models.weights import content_digest
from xent_metrics.scoring.token_bytes import token_bytes
from xent_metrics.sums.options import readable

__all__ = [
    "ByteTokenizer",
    "bytes_table",
    "encode",
    "ids_needed",
    "load_tokenizer",
    "prefix_token_of",
    "text_ids",
    "tokenizer_content",
    "tokenizer_label",
]


class ByteTokenizer:
    """Ids 0 to 255 are the UTF-8 bytes of a text, and 256 begins or ends one, so a model needs V ≥ 257.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("é!"), tokenizer.decode([256, 195, 169])
    ([195, 169, 33], 'é')
    """

    bos_token_id = eos_token_id = 256
    vocab_size = 257
    name_or_path = "bytes"

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of the text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text; invalid UTF-8 becomes U+FFFD, and ids above 255 are skipped."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The byte of an id, for `xent_metrics.token_bytes`."""
        return bytes([token_id]) if token_id < 256 else None

    def __len__(self) -> int:
        return self.vocab_size


def load_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer for ``"bytes"``, a path or name for `transformers.AutoTokenizer`, or an object with `encode` and `decode`."""
    if isinstance(tokenizer, str):
        if tokenizer == "bytes":
            return ByteTokenizer()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tokenizer)
    if not (callable(getattr(tokenizer, "encode", None)) and callable(getattr(tokenizer, "decode", None))):
        raise InvalidInputError(
            f'tokenizer is "bytes", a path of a Hugging Face tokenizer or an object with encode and decode; '
            f"got {type(tokenizer).__name__}"
        )
    return tokenizer


def tokenizer_label(tokenizer: Any) -> str:
    """What a tokenizer is called in messages: its name or path, otherwise its class."""
    named = (getattr(tokenizer, name, "") for name in ("name_or_path", "name"))  # Hugging Face's, and tiktoken's
    return next((name for name in named if name and isinstance(name, str)), type(tokenizer).__name__)


def tokenizer_content(tokenizer: Any) -> str:
    """A tokenizer's label with a digest of its vocabulary and rules; the label alone of objects that don't show theirs.

    >>> tokenizer_content(ByteTokenizer())
    'bytes'
    """
    try:
        content = _rules(tokenizer)
    except Exception:  # somebody else's code, which may not have it
        content = ""
    return f"{tokenizer_label(tokenizer)} {content_digest(content)}" if content else tokenizer_label(tokenizer)


def _rules(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(backend, Tokenizer):
        of_last_call = {"truncation": None, "padding": None}
        return json.dumps(json.loads(backend.to_str()) | of_last_call, sort_keys=True)
    return readable(sorted((readable(token), int(place)) for token, place in tokenizer.get_vocab().items()))


def prefix_token_of(tokenizer: Any) -> int:
    """The id that begins a text: the tokenizer's BOS, otherwise its EOS (`eot_token` in tiktoken)."""
    for name in ("bos_token_id", "eos_token_id", "eot_token"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    raise InvalidInputError(
        f"{type(tokenizer).__name__} names no BOS or EOS token, and the first token of a text is predicted from one; "
        "pass prefix_token_id=…"
    )


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool | None) -> list[int]:
    """The ids of `text`; None leaves special tokens to the tokenizer's default, as lm-eval does."""
    if hasattr(tokenizer, "encode_ordinary"):  # tiktoken's encode refuses text that spells a special token
        return list(tokenizer.encode_ordinary(text))
    takes_it = "add_special_tokens" in inspect.signature(tokenizer.encode).parameters
    options = {"add_special_tokens": add_special_tokens} if takes_it and add_special_tokens is not None else {}
    encoding = tokenizer.encode(text, **options)
    return list(getattr(encoding, "ids", encoding))


def bytes_table(tokenizer: Any, vocab_size: int | None = None) -> Tensor | None:
    """UTF-8 bytes by id ``(V,)``; None if the tokenizer's bytes can't be counted, so that scores have no `num_bytes`.

    V is the largest id + 1 by default.
    """
    try:
        return token_bytes(tokenizer, vocab_size=vocab_size)
    except TokenBytesError:
        return None


def ids_needed(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer; 0 if it doesn't say."""
    if hasattr(tokenizer, "__len__"):
        return len(tokenizer)
    return int(getattr(tokenizer, "n_vocab", 0))


def text_ids(tokenizer: Any, num_ids: int) -> list[int]:
    """The ids of a Hugging Face tokenizer below `num_ids` that stand for text: neither special nor added tokens."""
    added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    size = min(tokenizer.vocab_size, num_ids)
    return [i for i in range(size) if i not in added] or list(range(size))
