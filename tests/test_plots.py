"""`metric.plot()` of every registered metric, and the reliability diagrams of calibration errors."""

import io
import math

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from support.registered import buildable

from xent_metrics import BitsPerByte, CrossEntropy, TokenScores, get_metric, score_tokens
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidTargetError
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.plots import draw_by_group, figure

matplotlib.use("Agg")
RELIABILITY = ["expected_calibration_error", "maximum_calibration_error", "rms_calibration_error"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def batch(classes=2):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(40, classes, generator=generator), torch.randint(classes, (40,), generator=generator)


def filled(metric):
    """The metric after an update with a batch that it accepts."""
    logits, target = batch()
    if isinstance(metric, PairMetric):
        metric.update((logits, logits.flip(0)), target)
    elif "binary" in metric.scoring_options():
        metric.update(logits[:, 0], target)
    else:
        words = torch.ones_like(target)
        scores = score_tokens(
            logits, target, token_bytes=torch.ones(2, dtype=torch.long), extra_scores=metric.extra_scores()
        )
        metric.update(
            TokenScores(**{**scores.fields(), "num_words": words}, vocab_size=2, extra_scores=scores.extra_scores)
        )
    return metric


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics warns before the first update
@pytest.mark.parametrize("name", buildable())
def test_every_metric_has_a_plot_before_and_after_an_update(name):
    get_metric(name).plot()
    metric = filled(get_metric(name))
    figure, axes = metric.plot()
    assert axes.figure is figure
    assert axes.get_title()
    assert axes.get_ylabel() == ("accuracy" if name in RELIABILITY else metric.value_unit)
    figure, axes = metric.plot([metric.compute(), metric.compute()])
    assert axes.get_ylabel() == metric.value_unit
    [line] = axes.lines
    assert len(line.get_xdata()) == 2


@pytest.mark.parametrize("name", RELIABILITY)
def test_a_calibration_error_draws_its_bins(name):
    logits, target = batch(5)
    metric = get_metric(name, num_bins=10)
    metric.update(logits, target)
    figure, axes = metric.plot()
    confidence, top = torch.softmax(logits.double(), -1).max(-1)
    for bar in axes.patches:
        if bar.get_width() == pytest.approx(0.1) and bar.get_height() > 0:
            low = bar.get_x()
            inside = (confidence > low + 1e-9) & (confidence <= low + 0.1 + 1e-9)
            assert bar.get_height() == pytest.approx(float((top == target)[inside].double().mean()))
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) == pytest.approx(1.0)  # the shares
    assert axes.get_title().endswith(f": {float(metric.compute()):.4f}")
    assert name.replace("_", " ") in axes.get_title()


def test_a_calibration_error_draws_on_given_axes_and_keeps_its_state():
    metric = filled(get_metric("expected_calibration_error"))
    before = metric.state.clone()
    figure, (left, right) = plt.subplots(1, 2)
    assert metric.plot(ax=right) == (figure, right)
    assert right.patches
    assert not left.patches
    assert len(figure.axes) == 2
    assert torch.equal(metric.state, before)


def test_bins_of_equal_mass_have_a_plain_plot():
    metric = filled(get_metric("expected_calibration_error", binning="mass"))
    _, axes = metric.plot()
    assert axes.get_ylabel() == "probability"


def test_a_diagram_does_not_hide_invalid_targets():
    metric = get_metric("rms_calibration_error")
    metric.update(torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.raises(InvalidTargetError, match="1 targets"):
        metric.plot()


def test_without_data_the_diagram_is_empty():
    _, axes = get_metric("maximum_calibration_error").plot()
    assert axes.get_title() == f"maximum calibration error: {math.nan}"


def test_the_unit_follows_the_options():
    bits = CrossEntropy(unit="bits")
    assert (bits.value_unit, CrossEntropy().value_unit, CrossEntropy.value_unit) == (
        "bits per token", "nats per token", "nats per token",
    )  # fmt: skip
    assert StandardError(bits).value_unit == "bits per token"
    assert filled(bits).plot()[1].get_ylabel() == "bits per token"
    assert bits.clone().value_unit == "bits per token"
    assert BitsPerByte().value_unit == "bits per byte"


def test_a_long_title_wraps_within_the_figure():
    name = "a_task_whose_name_is_far_longer_than_the_figure_is_wide_" * 2
    with figure(io.BytesIO(), (4, 3), format="png") as drawn:
        axes = drawn.add_subplot()
        draw_by_group(axes, ["a"], [1.0], title=f"Loss by position: {name}", unit="nats")
        drawn.canvas.draw()
        [title] = axes.findobj(lambda artist: isinstance(artist, Text) and artist.get_text().startswith("Loss"))
        assert title.get_window_extent().x1 <= drawn.bbox.x1
        assert title.get_text().replace("\n", "").endswith(name)
