"""The content of a model in a few words, so that results of another model under the same name aren't taken for its own."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import zlib
from typing import Any

import numpy as np
import torch
from torch import nn

from xent_metrics.sums.options import readable

__all__ = ["attributes_digest", "content_digest", "weights_digest"]

_CHUNK = 1 << 26  # bytes that are copied from a device at a time
_MOST_VALUES = 1000
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Tensor, np.ndarray, np.generic)


def weights_digest(module: nn.Module, *, ends: int | None = None) -> str:
    """A digest of the names, dtypes, shapes and bits of all parameters and buffers.

    It reads every weight once, about a gigabyte a second. It notices changes; it isn't proof against forgery.

    Args:
        module: whose weights.
        ends: how many bytes to read at either end of each tensor; all by default.

    >>> linear = nn.Linear(2, 2)
    >>> before = weights_digest(linear)
    >>> _ = linear.weight.data[1, 1].add_(1)
    >>> weights_digest(linear) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor, ends)}\n".encode())
    return digest.hexdigest()[:32]


def attributes_digest(module: nn.Module) -> str:
    """A digest of the public attributes of a module and its submodules that are plain values, such as a scale or a dataclass.

    Lists and dicts of more than 1,000 values are left out: they are data rather than options.

    >>> attributes_digest(nn.Dropout(0.1)) == attributes_digest(nn.Dropout(0.2))
    False
    """
    found = {}
    for name, each in module.named_modules():
        values = {key: value for key, value in vars(each).items() if not key.startswith("_") and _is_plain(value)}
        found[f"{name} {type(each).__qualname__}"] = dict(sorted(values.items()))
    return content_digest(readable(found))


def _is_plain(value: Any, depth: int = 5) -> bool:
    if depth and isinstance(value, list | tuple | set | frozenset):
        return len(value) <= _MOST_VALUES and all(_is_plain(each, depth - 1) for each in value)
    if depth and isinstance(value, dict):
        return len(value) <= _MOST_VALUES and all(_is_plain(each, depth - 1) for each in [*value, *value.values()])
    if depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        return all(_is_plain(each, depth - 1) for each in fields)
    return isinstance(value, _PLAIN)


def content_digest(text: str) -> str:
    """A short digest of a text that is too long to be shown.

    >>> content_digest("a tokenizer's rules")
    'd19cae0c3a37'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@torch.no_grad()
def _checksum(tensor: torch.Tensor, ends: int | None) -> int:
    if tensor.is_meta:  # weights that are offloaded, say to a disk, have no bits here
        return 0
    tensor = tensor.int_repr() if tensor.is_quantized else tensor  # a view as bytes would crash
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if ends is not None and flat.numel() > 2 * ends:
        flat = torch.cat([flat[:ends], flat[-ends:]])
    checksum = 0
    for start in range(0, flat.numel(), _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].cpu().numpy().data, checksum)
    return checksum
