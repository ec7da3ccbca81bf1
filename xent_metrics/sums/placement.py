"""Where a metric's state and the scores are: what is wrong, or slow, about it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from xent_metrics.errors import CaptureError

__all__ = ["keeping_values", "refuse_capture", "warn_of_waiting", "with_memory"]

_warned_of: set[torch.device] = set()


def with_memory() -> AbstractContextManager[object]:
    """A context for building what has values from the start: on the CPU if the default device is meta.

    Models are built on meta and get their weights later, in the memory that `to_empty` gives them. Nobody would fill a
    metric's sums and tables.

    >>> with torch.device("meta"), with_memory():
    ...     torch.zeros(1)
    tensor([0.])
    """
    return torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()


def keeping_values(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function for `nn.Module._apply` that gives tensors the place and dtype that `function` gives them, and their values.

    `Module.to_empty` gives memory as it comes. A tensor that is on meta has no values, and becomes zeros.

    >>> keeping_values(torch.empty_like)(torch.tensor([1, 2]))
    tensor([1, 2])
    """

    @functools.wraps(function)  # torchmetrics tells conversions of the dtype by the name
    def apply(tensor: Tensor) -> Tensor:
        moved = function(tensor)
        if moved is tensor or moved.is_meta or type(moved) is not Tensor:  # a fake tensor has no values, either
            return moved
        return torch.zeros_like(moved) if tensor.is_meta else tensor.to(moved.device, moved.dtype)

    return apply


def refuse_capture(metric: str, device: torch.device) -> None:
    """Raise if a CUDA graph is being captured: the state is replaced, not written in place, so a replay would add nothing.

    Raises:
        CaptureError: a graph is being captured on this device.
    """
    if device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    if torch.cuda.is_current_stream_capturing():
        raise CaptureError(
            f"{metric} is updated while a CUDA graph is captured, but replays of the graph would not update it: its state is "
            "replaced, not written in place. Capture the model alone, and call update(logits, target) with the graph's "
            "outputs after each replay"
        )


def warn_of_waiting(metric: str, scores: torch.device) -> None:
    """Warn, once per device, that updates from it to a metric on the CPU wait for it."""
    if scores in _warned_of:
        return
    _warned_of.add(scores)
    warnings.warn(
        f"{metric} is on the CPU and its scores are on {scores}: every update waits for {scores} to finish. Move all metrics, "
        f"metric.to({str(scores)!r}), so that only compute() waits",
        stacklevel=2,
    )
