"""Pictures where people would rather look than read: reliability, loss by group, and what a loss makes of a probability.

Each draws on axes that it is given, so that they can stand in anyone's figure; `figure` makes one and saves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.scoring.binary import two_classes

__all__ = [
    "BLUE",
    "INK",
    "MUTED",
    "ORANGE",
    "draw_by_group",
    "draw_curve",
    "draw_reliability",
    "figure",
    "plot_reliability",
    "reliability_axes",
]

INK, MUTED, BLUE, PALE, ORANGE = "#1f2933", "#9aa5b1", "#2b6cb0", "#c3d5e8", "#dd6b20"
#: Of several runs, told apart by colour-blind eyes as well (Okabe and Ito).
SERIES = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE = {
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "font.size": 10,
    "legend.frameon": False, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "xent-metrics",
}  # fmt: skip


@contextmanager
def figure(path: str | Path | IO[str], size: tuple[float, float] = (6.5, 5), **options: Any) -> Iterator[Any]:
    """A figure in the project's style, saved to `path` (PNG, SVG or PDF, by its ending) on leaving, with savefig's `options`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    if isinstance(path, str | Path):
        _check_file(Path(path), Figure().canvas.get_supported_filetypes())
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=size, layout="constrained")  # of its own, whatever backend the process has
        yield drawn
        drawn.savefig(path, dpi=150, **options)


def _check_file(path: Path, endings: Iterable[str]) -> None:
    if path.suffix[1:] not in endings:
        raise InvalidInputError(
            f"{path}: expected a file that ends in .{', .'.join(sorted(endings))}; got {path.suffix!r}"
        )
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path}: there is no folder {path.parent}; make it first")


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'xent-metrics[plots]'") from error
    return matplotlib


def plot_reliability(bins: Mapping[str, Tensor], title: str, ax: Any = None) -> tuple[Any, Any]:
    """A reliability diagram as `metric.plot` gives one: a figure of pyplot's and its axes, or on `ax` without the shares."""
    matplotlib = _matplotlib()
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE | {"axes.titlelocation": "center"}):  # where a caller's set_title puts another
        if ax is None:
            drawn = pyplot.figure(figsize=(6.5, 5), layout="constrained")
            axes, share = reliability_axes(drawn)
        else:
            drawn, axes, share = ax.figure, ax, None
        draw_reliability(axes, share, bins)
        axes.set_title(title)
    return drawn, axes


def reliability_axes(drawn: Any, place: Any = None) -> tuple[Any, Any]:
    """The two axes of a reliability diagram, one above the other, in a figure or in a cell of its grid."""
    grid = (
        drawn.add_gridspec(2, 1, height_ratios=(4, 1))
        if place is None
        else place.subgridspec(2, 1, height_ratios=(4, 1))
    )
    axes = drawn.add_subplot(grid[0])
    return axes, drawn.add_subplot(grid[1], sharex=axes)


def draw_reliability(axes: Any, share: Any, bins: Mapping[str, Tensor], rows: str = "tokens") -> None:
    """Accuracy and mean confidence by bin, and how many tokens each bin holds.

    Args:
        axes, share: from `reliability_axes`; without `share` the bins' shares aren't drawn.
        bins: the sums `tokens`, `correct` and `confidence`, each ``(num_bins,)`` over equal-width bins of the confidence:
            ``metric.bins(metric.unpack(to_float(metric.state)))`` of an `ExpectedCalibrationError`.
        rows: what the model predicted, for the labels.
    """
    tokens, correct, sureness = (bins[name].cpu().numpy() for name in ("tokens", "correct", "confidence"))
    filled = tokens > 0
    width = 1 / len(tokens)
    edges = np.arange(len(tokens))[filled] * width
    shares = tokens[filled] / tokens.sum()
    accuracy, confidence = correct[filled] / tokens[filled], sureness[filled] / tokens[filled]
    error = (shares * np.abs(accuracy - confidence)).sum()
    bar = {"width": 0.94 * width, "align": "edge"}
    # A bin of a few rows says little: it is pale.
    axes.bar(edges, accuracy, color=[BLUE if part >= 0.005 else PALE for part in shares], **bar)
    axes.bar(0, 0, color=BLUE, label="accuracy")
    axes.bar(0, 0, color=PALE, label=f"of under 0.5 % of the {rows}")
    axes.hlines(confidence, edges, edges + width, color=ORANGE, linewidth=2.5, label="mean confidence")
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="as often right as sure")
    axes.set(title=f"Reliability: expected calibration error {error:.4f}", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    if share is None:
        axes.set_xlabel("top-1 confidence")
        return
    axes.tick_params(labelbottom=False)
    share.bar(edges, shares, color=MUTED, **bar)
    share.set(xlabel="top-1 confidence", ylabel=f"share of\nall {rows}")


def draw_by_group(
    axes: Any,
    labels: Sequence[str],
    values: Sequence[float],
    halves: Sequence[float] | Sequence[Sequence[float]] | None = None,
    *,
    title: str,
    unit: str,
    xlabel: str = "",
    called: str = "",
    color: str = BLUE,
    order: Sequence[str] | None = None,
) -> None:
    """A value of each group, in order: loss by position, domain …

    `halves` are those of the confidence intervals, one for each value, or those below and those above it.
    Several runs on the same axes are told apart by what they are `called` and their `color`; `order` is that of all labels.
    """
    order = list(labels if order is None else order)
    places = [order.index(label) for label in labels]
    style = {"color": color, "marker": "o", "linewidth": 2, "capsize": 3, "elinewidth": 1.2, "label": called}
    axes.errorbar(places, values, yerr=halves, **style)
    slanted = 45 if max(map(len, order), default=0) > 6 else 0
    # Labels may be text of documents, in which a dollar sign is no formula.
    axes.set_xticks(range(len(order)), order, rotation=slanted, parse_math=False)
    axes.set(ylabel=unit)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(xlabel, parse_math=False)
    axes.grid(axis="y", color=MUTED, alpha=0.3)
    if called:
        axes.legend()


def draw_curve(axes: Any) -> None:
    """Binary cross entropy against the predicted probability, for both true labels.

    −ln p where the label is 1, −ln(1 − p) where it is 0: a sure and wrong forecast costs without bound.
    """
    probability = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    for label, colour in ((1, BLUE), (0, ORANGE)):
        logits, _ = two_classes(probability, torch.full_like(probability, label, dtype=torch.long), "probabilities")
        loss = -torch.log_softmax(logits, -1)[:, label]
        axes.plot(probability.numpy(), loss.numpy(), color=colour, linewidth=2, label=f"the label is {label}")
    axes.axhline(math.log(2), color=MUTED, linestyle=":", linewidth=1)
    axes.annotate(
        "a coin: ln 2", (0, math.log(2)), (4, 4), ("axes fraction", "data"), "offset points", color=MUTED, fontsize=9
    )
    axes.set(
        title="Cross entropy", xlabel="predicted probability of the label 1", ylabel="nats", xlim=(0, 1), ylim=(0, 6)
    )
    axes.legend(loc="upper center")
