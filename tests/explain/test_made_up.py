"""Made-up data: metrics built without being told how, and pictures of what was really computed."""

from __future__ import annotations

import re

import pytest

from xent_metrics import RatioMetric, get_metric, list_metrics
from xent_metrics.explain.made_up import made_up_metric, picture, scores_in_training
from xent_metrics.plugins import plugins


@pytest.mark.parametrize("name", list_metrics())
def test_every_registered_metric_has_a_value_at_every_step(name):
    metric = made_up_metric(plugins().metrics[name])
    for scores in scores_in_training(metric):
        metric.reset()
        metric.update(scores)
        assert metric.compute().isfinite()


def test_the_model_learns_and_is_overconfident():
    values = {}
    for name in ("cross_entropy", "optimal_temperature", "kl_divergence"):
        metric = get_metric(name)
        values[name] = []
        for scores in scores_in_training(metric):
            metric.reset()
            metric.update(scores)
            values[name].append(float(metric.compute()))
    assert values["cross_entropy"][0] > 3 > 1.2 > values["cross_entropy"][-1]
    assert all(1.3 < temperature < 1.7 for temperature in values["optimal_temperature"])
    assert values["kl_divergence"] == sorted(values["kl_divergence"], reverse=True)


@pytest.mark.parametrize("name", ["perplexity", "expected_calibration_error"])
def test_a_picture_is_drawn_and_the_same_every_time(name):
    drawn = picture(plugins().metrics[name])
    assert drawn.startswith("<?xml")
    assert "</svg>" in drawn
    assert len(re.findall("<path", drawn)) > 50  # letters and lines
    assert drawn == picture(plugins().metrics[name])


def test_a_metric_whose_option_means_something_else_has_no_picture():
    class Words(RatioMetric):
        name = "words"

        def __init__(self, classes=("noun", "verb"), **kwargs):
            super().__init__(**kwargs)
            self.classes = list(classes)

        def per_token(self, scores):
            return scores.nll

    assert made_up_metric(Words) is None


def test_a_metric_with_options_that_nobody_knows_has_no_picture():
    class Bare(RatioMetric):
        name = "bare"

        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)

        def per_token(self, scores):
            return scores.nll

    assert made_up_metric(Bare) is None
    assert picture(Bare) is None
