"""Extra scores are one if they compute the same, however often a metric makes them."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from xent_metrics import ExtraScore, RatioMetric, TokenMetricCollection, get_metric
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


def by_keyword(value):
    def function(log_prob, index, *, value=value):
        return log_prob[:, 0] * value

    return ExtraScore(function)


def test_keyword_defaults_and_the_module_count():
    assert extra_score_key(by_keyword(2)) == extra_score_key(by_keyword(2))
    assert extra_score_key(by_keyword(2)) != extra_score_key(by_keyword(3))
    source = compile("def function(log_prob, index):\n    return log_prob[:, 0] * GAMMA", "plugin.py", "exec")
    modules = [{"GAMMA": 2}, {"GAMMA": 3}]
    for module in modules:
        exec(source, module)
    one, other = (extra_score_key(ExtraScore(module["function"])) for module in modules)
    assert one != other


def test_an_object_that_is_gone_is_not_taken_for_the_next_at_its_address():
    def key(value):
        return extra_score_key(ExtraScore(functools.partial(torch.mul, Opaque(value))))

    class Opaque:
        def __init__(self, value):
            self.value = value

    assert len({key(value) for value in range(20)}) == 20


class OfTable(RatioMetric):
    name = "of_table"

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def extra_scores(self):
        return {"of_table": ExtraScore(self._first)}

    def _first(self, log_prob, index):
        return log_prob[:, 0] * self.table[1500]

    def per_token(self, scores):
        return scores.extra_scores["of_table"]


class Looked:
    """An option that reads the same whatever is in it."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "Looked()"

    def __getitem__(self, index):
        return self.value


def table(value):
    return np.full(3000, 7.0) + value * (np.arange(3000) == 1500)


@pytest.mark.parametrize("make", [table, lambda value: torch.from_numpy(table(value)), Looked])
def test_an_options_content_counts_however_it_reads(make, batch):
    members = {str(value): OfTable(make(float(value))) for value in (1, 2)}
    assert keys(members["1"]) == keys(members["1"]) != keys(members["2"])
    alone = {}
    for key, metric in members.items():
        metric = copy.deepcopy(metric)
        metric.update(*batch)
        alone[key] = metric.compute()
    together = TokenMetricCollection(members)
    together.update(*batch)
    assert together.compute() == alone
