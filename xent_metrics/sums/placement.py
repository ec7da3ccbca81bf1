"""Where a metric's state and the scores are: what is wrong, or slow, about it."""

from __future__ import annotations

import warnings

import torch

from xent_metrics.errors import CaptureError

__all__ = ["refuse_capture", "warn_of_waiting"]

_warned_of: set[torch.device] = set()


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
