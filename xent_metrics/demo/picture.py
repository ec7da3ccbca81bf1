"""The demo's picture: how training went, and whether the model is as sure as it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .model import ByteLSTM

__all__ = ["draw"]

_INK, _MUTED, _BLUE, _PALE, _ORANGE = "#1f2933", "#9aa5b1", "#2b6cb0", "#c3d5e8", "#dd6b20"
_STYLE = {
    "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "font.size": 10,
    "legend.frameon": False, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
}  # fmt: skip


def draw(model: ByteLSTM, path: Path) -> None:
    """Training and validation loss, and the reliability diagram of the top-1 confidence, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(11, 5), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1), wspace=0.06)
        _draw_losses(figure.add_subplot(grid[:, 0]), model.training_losses, model.validation_losses)
        reliability = figure.add_subplot(grid[0, 1])
        share = figure.add_subplot(grid[1, 1], sharex=reliability)
        _draw_reliability(reliability, share, model.confidence_bins)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _draw_losses(axes: Any, training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> None:
    steps = [step for step, _ in training]
    bits = np.array([nats for _, nats in training]) / math.log(2)
    axes.plot(steps, bits, color=_BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, _smoothed(bits), color=_BLUE, linewidth=2, label="training, each batch and smoothed")
    axes.plot(
        [step for step, _ in validation], [nats / math.log(2) for _, nats in validation],
        color=_ORANGE, marker="o", linewidth=2, label="held-out documents",
    )  # fmt: skip
    lowest = min(float(bits.min()), *(nats / math.log(2) for _, nats in validation))
    axes.set(title="Loss", xlabel="training step", ylabel="bits per byte", ylim=(math.floor(lowest), 8.2))
    axes.axhline(8, color=_MUTED, linestyle=":", linewidth=1)
    axes.annotate("every byte as likely: 8", (1, 8), (0, -4), ("axes fraction", "data"), "offset points",
                  ha="right", va="top", color=_MUTED, fontsize=9)  # fmt: skip
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94))


def _smoothed(values: Any) -> list[float]:
    """The mean of the last twentieth of all values, fewer at the beginning."""
    window = max(1, len(values) // 20)
    return [values[max(0, end - window) : end].mean() for end in range(1, len(values) + 1)]


def _draw_reliability(axes: Any, share: Any, bins: Mapping[str, Tensor]) -> None:
    tokens, correct, sureness = (bins[name].numpy() for name in ("tokens", "correct", "confidence"))
    num_bins = len(tokens)
    filled = tokens > 0
    width = 1 / num_bins
    edges = np.arange(num_bins)[filled] * width
    shares = tokens[filled] / tokens.sum()
    accuracy, confidence = correct[filled] / tokens[filled], sureness[filled] / tokens[filled]
    error = (shares * np.abs(accuracy - confidence)).sum()
    bar = {"width": width, "align": "edge", "edgecolor": "white"}
    # A bin of a few bytes says little: it is pale.
    colours = [_BLUE if part >= 0.005 else _PALE for part in shares]
    axes.bar(edges, accuracy, color=colours, **bar)
    axes.bar(0, 0, color=_BLUE, label="accuracy")
    axes.bar(0, 0, color=_PALE, label="of under 0.5 % of the bytes")
    axes.hlines(confidence, edges, edges + width, color=_ORANGE, linewidth=2.5, label="mean confidence")
    axes.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1, label="as often right as sure")
    axes.set(title=f"Reliability: expected calibration error {error:.4f}", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelbottom=False)
    axes.legend(loc="upper left")
    share.bar(edges, shares, color=_MUTED, **bar)
    share.set(xlabel="top-1 confidence", ylabel="share of\nall bytes")
