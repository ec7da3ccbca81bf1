"""Copies between the host and a device that nobody waits for: ids go there, and the scores of a batch come back as one.

Copies from and to pinned memory run beside the device's work. The only wait of a batch is for its results, once the next
batch has been started (runner.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xent_metrics.scoring.scores import TokenScores

__all__ = ["pack", "send", "start_copy", "unpack"]


def send(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it on CUDA; numbers become int64."""
    found = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.long)
    if device.type != "cuda" or found.device.type != "cpu":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)


def start_copy(scores: TokenScores) -> Callable[[], TokenScores]:
    """Start copying scores to the CPU, all tensors at once; the function that is returned waits for them."""
    if scores.device.type == "cpu":
        return lambda: scores
    tensors: list[Tensor] = []
    scores.map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    arrive = _start(pack(tensors))

    def wait() -> TokenScores:
        parts = iter(unpack(arrive(), tensors))
        return scores.map(lambda tensor: next(parts))

    return wait


def _start(packed: Tensor) -> Callable[[], Tensor]:
    if packed.device.type != "cuda":
        return lambda: packed.to("cpu")
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(packed.device))

    def arrive() -> Tensor:
        done.synchronize()
        return host

    return arrive


def pack(tensors: Iterable[Tensor]) -> Tensor:
    """The bytes of all tensors, those with the widest numbers first, so that each starts where its numbers may.

    >>> pack([torch.tensor([True, False]), torch.tensor([1.0])])
    tensor([  0,   0, 128,  63,   1,   0], dtype=torch.uint8)
    """
    return torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in _widest_first(tensors)])


def unpack(packed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The numbers in `packed`, as views, with the dtypes and shapes of the `tensors` that it was made of."""
    order = _widest_first(tensors)
    parts = torch.split(packed, [tensor.numel() * tensor.itemsize for tensor in order])
    views = {id(t): part.view(t.dtype).reshape(t.shape) for t, part in zip(order, parts, strict=True)}
    return [views[id(tensor)] for tensor in tensors]


def _widest_first(tensors: Iterable[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: -tensor.itemsize)
