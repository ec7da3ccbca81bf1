"""Extra scores are one if they compute the same, however often a metric makes them."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from xent_metrics import ExtraScore, get_metric
from xent_metrics.sums.extra_scores import extra_score_key

NAMES = ["full_calibration_error", "optimal_temperature", "mean_reciprocal_rank", "brier_score"]


def keys(metric):
    return [extra_score_key(score) for score in metric.extra_scores().values()]


@pytest.mark.parametrize("name", NAMES)
def test_a_metrics_copies_ask_for_the_same(name):
    metric = get_metric(name)
    assert keys(metric) == keys(metric) == keys(copy.deepcopy(metric)) == keys(get_metric(name))


def test_both_metrics_of_the_temperature_ask_for_one():
    assert keys(get_metric("optimal_temperature")) == keys(get_metric("cross_entropy_at_optimal_temperature"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (get_metric("full_calibration_error"), get_metric("full_calibration_error", num_bins=3)),
        (get_metric("optimal_temperature"), get_metric("optimal_temperature", highest=8)),
        (get_metric("brier_score"), get_metric("prediction_entropy")),
    ],
)
def test_other_options_and_other_functions_are_others(one, other):
    assert keys(one) != keys(other)


def held(value):
    return ExtraScore(lambda log_prob, index: log_prob[:, 0] * value)


def by_default(value):
    return ExtraScore(lambda log_prob, index, value=value: log_prob[:, 0] * value)


def by_partial(value):
    return ExtraScore(functools.partial(torch.mul, value))


@pytest.mark.parametrize("make", [held, by_default, by_partial])
def test_what_a_function_holds_counts(make):
    table = torch.ones(3)
    assert extra_score_key(make(2)) == extra_score_key(make(2))
    assert extra_score_key(make(2)) != extra_score_key(make(2.5))
    assert extra_score_key(make(1)) != extra_score_key(make(True))
    assert extra_score_key(make(table)) == extra_score_key(make(table))
    assert extra_score_key(make(table)) != extra_score_key(make(table.clone()))


def test_shape_and_source_count():
    score = held(1)
    assert extra_score_key(score) != extra_score_key(ExtraScore(score.function, (2,)))
    assert extra_score_key(score) != extra_score_key(ExtraScore(score.function, of="logits"))
