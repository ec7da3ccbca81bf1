"""The content of a model's weights in one word, so that results of other weights under the same name aren't taken for its own."""

from __future__ import annotations

import hashlib
import itertools
import zlib

import torch
from torch import nn

__all__ = ["weights_digest"]

_CHUNK = 1 << 26  # bytes that are copied from a device at a time


def weights_digest(module: nn.Module) -> str:
    """A digest of the names, dtypes, shapes and bits of all parameters and buffers.

    It reads every weight once, about a gigabyte a second. It notices changes; it isn't proof against forgery.

    >>> linear = nn.Linear(2, 2)
    >>> before = weights_digest(linear)
    >>> _ = linear.weight.data[1, 1].add_(1)
    >>> weights_digest(linear) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _checksum(tensor: torch.Tensor) -> int:
    if tensor.is_meta:  # weights that are offloaded, say to a disk, have no bits here
        return 0
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    checksum = 0
    for start in range(0, flat.numel(), _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].cpu().numpy().data, checksum)
    return checksum
