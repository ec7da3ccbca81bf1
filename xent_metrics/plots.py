"""Plots: reliability diagrams, values by group, and cross entropy as a function of the predicted probability.

Each function draws on the axes it is given, so that it fits into any figure. `figure` creates one and saves it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.files import replacing, require_writable_file
from xent_metrics.scoring.binary import two_classes

__all__ = [
    "BLUE",
    "INK",
    "MUTED",
    "ORANGE",
    "as_pixels",
    "draw_by_group",
    "draw_curve",
    "draw_reliability",
    "figure",
    "plot_reliability",
    "pyplot_axes",
    "reliability_axes",
]

INK, MUTED, BLUE, PALE, ORANGE = "#1f2933", "#9aa5b1", "#2b6cb0", "#c3d5e8", "#dd6b20"
#: Colours of several runs, safe for colour-blind readers (Okabe and Ito).
SERIES = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_CHARACTERS_PER_INCH = 7  # of a title, so that a long task's name isn't cut off
_STYLE = {
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "font.size": 10,
    "legend.frameon": False, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "xent-metrics",
}  # fmt: skip


@contextmanager
def figure(path: str | Path | IO[str], size: tuple[float, float] = (6.5, 5), **options: Any) -> Iterator[Any]:
    """A figure in the project's style that is saved when the context ends.

    Args:
        path: a file whose ending gives the format (.png, .svg, .pdf …), or an open file.
        size: in inches.
        **options: passed to `Figure.savefig`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidInputError: the ending is unknown, or the folder doesn't exist.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    if isinstance(path, str | Path):
        _check_file(Path(path), Figure().canvas.get_supported_filetypes())
        options = {"format": Path(path).suffix[1:], **options}
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=size, layout="constrained")  # independent of pyplot and its backend
        yield drawn
        if not isinstance(path, str | Path):
            drawn.savefig(path, dpi=150, **options)
            return
        drawn.savefig(
            content := BytesIO(), dpi=150, **options
        )  # on a full disk matplotlib may hide the error by its own
        with replacing(path) as new:
            new.write_bytes(content.getvalue())


def _check_file(path: Path, endings: Iterable[str]) -> None:
    if path.suffix[1:] not in endings:
        raise InvalidInputError(
            f"{path}: expected a file that ends in .{', .'.join(sorted(endings))}; got {path.suffix!r}"
        )
    require_writable_file(path)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'xent-metrics[plots]'") from error
    return matplotlib


def pyplot_axes(ax: Any = None) -> tuple[Any, Any]:
    """The figure and axes that a metric's `plot` draws on and returns: those of `ax`, or new ones of pyplot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _matplotlib()
    from matplotlib import pyplot

    return pyplot.subplots() if ax is None else (ax.figure, ax)


def as_pixels(plot: Callable[[], tuple[Any, Any]]) -> Any:
    """The pixels ``(height, width, 3)``, uint8, of a figure that `plot` makes, as ``metric.plot`` does."""
    _matplotlib()
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn, _ = plot()
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    pyplot.close(drawn)
    return pixels


def plot_reliability(bins: Mapping[str, Tensor], title: str, ax: Any = None) -> tuple[Any, Any]:
    """The reliability diagram of `metric.plot`: a pyplot figure and its axes, or a diagram on `ax` without the shares."""
    matplotlib = _matplotlib()
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE | {"axes.titlelocation": "center"}):  # so that a caller's set_title replaces it
        if ax is None:
            drawn = pyplot.figure(figsize=(6.5, 5), layout="constrained")
            axes, share = reliability_axes(drawn)
        else:
            drawn, axes, share = ax.figure, ax, None
        draw_reliability(axes, share, bins)
        axes.set_title(title)
    return drawn, axes


def reliability_axes(drawn: Any, place: Any = None) -> tuple[Any, Any]:
    """The two axes of a reliability diagram, one above the other, in a figure or in `place`, a cell of its grid."""
    grid = (
        drawn.add_gridspec(2, 1, height_ratios=(4, 1))
        if place is None
        else place.subgridspec(2, 1, height_ratios=(4, 1))
    )
    axes = drawn.add_subplot(grid[0])
    return axes, drawn.add_subplot(grid[1], sharex=axes)


def draw_reliability(axes: Any, share: Any, bins: Mapping[str, Tensor], rows: str = "tokens") -> None:
    """Draw accuracy and mean confidence by bin, and the share of tokens in each bin.

    Args:
        axes: for the diagram, from `reliability_axes`.
        share: for the shares, from `reliability_axes`; None leaves them out.
        bins: the sums `tokens`, `correct` and `confidence`, each ``(num_bins,)`` over equal-width bins of the confidence:
            ``metric.bins(metric.unpack(to_float(metric.state)))`` of an `ExpectedCalibrationError`.
        rows: the plural noun for what the model predicts, for labels.
    """
    tokens, correct, total_confidence = (bins[name].cpu().numpy() for name in ("tokens", "correct", "confidence"))
    filled = tokens > 0
    width = 1 / len(tokens)
    edges = np.arange(len(tokens))[filled] * width
    shares = tokens[filled] / tokens.sum()
    accuracy, confidence = correct[filled] / tokens[filled], total_confidence[filled] / tokens[filled]
    error = (shares * np.abs(accuracy - confidence)).sum()
    bar = {"width": 0.94 * width, "align": "edge"}
    # The accuracy of a bin with few rows is uncertain: its bar is pale.
    axes.bar(edges, accuracy, color=[BLUE if part >= 0.005 else PALE for part in shares], **bar)
    axes.bar(0, 0, color=BLUE, label="accuracy")
    axes.bar(0, 0, color=PALE, label=f"accuracy, fewer than 0.5 % of {rows}")
    axes.hlines(confidence, edges, edges + width, color=ORANGE, linewidth=2.5, label="mean confidence")
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
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
    """Draw one value per group with its confidence interval, such as the loss by position.

    Args:
        axes: to draw on; several runs may share them.
        labels: of the groups.
        values: one per group.
        halves: half-widths of the intervals, one per group, or two lists: below and above the values.
        title: of the axes.
        unit: of the values.
        xlabel: what the groups are.
        called: the run's name in the legend.
        color: the run's colour.
        order: the labels of all runs in the order of the axis; by default `labels`.
    """
    order = list(labels if order is None else order)
    places = [order.index(label) for label in labels]
    style = {"color": color, "marker": "o", "linewidth": 2, "capsize": 3, "elinewidth": 1.2, "label": called}
    axes.errorbar(places, values, yerr=halves, **style)
    slanted = 45 if max(map(len, order), default=0) > 6 else 0
    # Labels may be text of documents, where a dollar sign doesn't start a formula.
    axes.set_xticks(range(len(order)), order, rotation=slanted, parse_math=False)
    axes.set(ylabel=unit)
    axes.set_title(textwrap.fill(title, int(_CHARACTERS_PER_INCH * axes.figure.get_figwidth())), parse_math=False)
    axes.set_xlabel(xlabel, parse_math=False)
    axes.grid(axis="y", color=MUTED, alpha=0.3)
    if called:
        axes.legend()


def draw_curve(axes: Any) -> None:
    """Draw binary cross entropy against the predicted probability, for both true labels.

    −ln p if the label is 1, −ln(1 − p) if it is 0: a confident wrong forecast has unbounded loss.
    """
    probability = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    for label, colour in ((1, BLUE), (0, ORANGE)):
        logits, _ = two_classes(probability, torch.full_like(probability, label, dtype=torch.long), "probabilities")
        loss = -torch.log_softmax(logits, -1)[:, label]
        axes.plot(probability.numpy(), loss.numpy(), color=colour, linewidth=2, label=f"label {label}")
    axes.axhline(math.log(2), color=MUTED, linestyle=":", linewidth=1)
    axes.annotate(
        "p = 0.5: ln 2", (0, math.log(2)), (4, 4), ("axes fraction", "data"), "offset points", color=MUTED, fontsize=9
    )
    axes.set(title="Cross entropy", xlabel="predicted probability of label 1", ylabel="nats", xlim=(0, 1), ylim=(0, 6))
    axes.legend(loc="upper center")
