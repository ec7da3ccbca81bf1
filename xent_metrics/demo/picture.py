"""The demo's plot: losses during training, and a reliability diagram of the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xent_metrics.demo.model import ByteLSTM
from xent_metrics.plots import BLUE, MUTED, ORANGE, draw_reliability, figure, reliability_axes

__all__ = ["draw"]


def draw(model: ByteLSTM, path: Path) -> None:
    """Draw training and validation loss beside the reliability diagram of the top-1 confidence."""
    with figure(path, (11, 5)) as drawn:
        grid = drawn.add_gridspec(1, 2, wspace=0.06)
        _draw_losses(drawn.add_subplot(grid[0]), model.training_losses, model.validation_losses)
        draw_reliability(*reliability_axes(drawn, grid[1]), model.confidence_bins, rows="bytes")


def _draw_losses(axes: Any, training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> None:
    steps = [step for step, _ in training]
    bits = np.array([nats for _, nats in training]) / math.log(2)
    axes.plot(steps, bits, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, _smoothed(bits), color=BLUE, linewidth=2, label="training: per batch, and smoothed")
    axes.plot(
        [step for step, _ in validation], [nats / math.log(2) for _, nats in validation],
        color=ORANGE, marker="o", linewidth=2, label="held-out documents",
    )  # fmt: skip
    lowest = min(float(bits.min()), *(nats / math.log(2) for _, nats in validation))
    axes.set(title="Loss", xlabel="training step", ylabel="bits per byte", ylim=(math.floor(lowest), 8.2))
    axes.axhline(8, color=MUTED, linestyle=":", linewidth=1)
    axes.annotate("uniform bytes: 8", (1, 8), (0, -4), ("axes fraction", "data"), "offset points",
                  ha="right", va="top", color=MUTED, fontsize=9)  # fmt: skip
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94))


def _smoothed(values: Any) -> list[float]:
    """A moving average over a twentieth of all values, over fewer at the beginning."""
    window = max(1, len(values) // 20)
    return [values[max(0, end - window) : end].mean() for end in range(1, len(values) + 1)]
