"""The demo's plot, of losses that are made up."""

import math
import re

import matplotlib
import matplotlib.image
import pytest
import torch

from xent_metrics.demo.model import ByteLSTM
from xent_metrics.demo.picture import draw
from xent_metrics.sums.exact_sum import to_float


@pytest.fixture
def model():
    model = ByteLSTM(embedding=4, hidden=4)
    model.training_losses = [(step, (8 - step / 10) * math.log(2)) for step in range(40)]
    model.validation_losses = [(20, 6.5 * math.log(2)), (40, 3.5 * math.log(2))]
    metric = model.val.members()["expected_calibration_error"]
    metric.update(torch.randn(500, 257), torch.randint(257, (500,)))
    sums = metric.unpack(to_float(metric.state))
    model.confidence_bins = {name.partition(".")[2]: values for name, values in sums.items()}
    return model


def test_it_is_a_picture(model, tmp_path):
    draw(model, tmp_path / "demo.png")
    picture = matplotlib.image.imread(tmp_path / "demo.png")
    assert picture.shape[:2] == (750, 1650)
    assert picture[..., :3].std() > 0.1


def test_the_axes_are_in_bits_and_begin_below_the_lowest_loss(model, tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        draw(model, tmp_path / "demo.svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "demo.svg").read_text())
    assert {"bits per byte", "held-out documents", "uniform bytes: 8"} <= set(texts)
    losses = texts[: texts.index("bits per byte")]
    assert {"3", "8"} <= set(losses)  # the lowest, 3.5, is above the axes' end
    assert "2" not in losses
