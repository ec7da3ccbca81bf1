"""Calibration over all classes: what it reads, and which classes it takes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xent_metrics import (
    get_metric,
)
from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.metrics import (
    ClasswiseCalibrationError,
    FullCalibrationError,
)


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


class TestClasses:
    def test_the_full_error_reads_only_the_likeliest_classes(self):
        """As many as there are bins; all others are in the first bin, whose mass is what is left."""
        logits = torch.cat([3 * torch.randn(50, 20), torch.randn(50, 3000) - 4], dim=-1).double()
        target = torch.distributions.Categorical(logits=logits).sample()
        prob, hit = logits.softmax(-1), F.one_hot(target, 3020)
        bins = (prob * 15).ceil().long() - 1
        sums = torch.zeros(15, dtype=torch.float64).index_add(0, bins.flatten(), (hit - prob).flatten())
        want = sums.abs().sum() / 50
        torch.testing.assert_close(value(FullCalibrationError(), logits, target), want, rtol=1e-10, atol=0)
        many = torch.cat([torch.zeros(14), torch.full((90,), -30.0)])[None]  # as many above 1/15 as there can be
        assert value(FullCalibrationError(), many, torch.tensor([3])) < 1e-6
        assert value(FullCalibrationError(), many, torch.tensor([50])).item() == pytest.approx(2, abs=1e-6)

    def test_questions_with_fewer_choices(self):
        few, many = ClasswiseCalibrationError(classes=2), ClasswiseCalibrationError(classes=4)
        logits, target = torch.randn(9, 2), torch.arange(9) % 2
        assert value(many, logits, target).item() == pytest.approx(value(few, logits, target).item() / 2)

    def test_other_numbers_of_classes_are_refused(self):
        with pytest.raises(InvalidInputError, match=r"was built for 2 classes; got 5\. Set classes=5, or the ids"):
            ClasswiseCalibrationError().update(torch.zeros(1, 5), torch.tensor([0]))
        with pytest.raises(InvalidInputError, match="looks at the class 7; got 5 classes, the last of them 4"):
            ClasswiseCalibrationError(classes=[0, 7]).update(torch.zeros(1, 5), torch.tensor([0]))
        for classes in (0, -1, [], [1, 1], [-1, 2]):
            with pytest.raises(MetricOptionError, match="classes is a number of classes, or distinct ids; got"):
                get_metric("classwise_calibration_error", classes=classes)
