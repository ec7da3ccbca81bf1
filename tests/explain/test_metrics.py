"""The facts of metrics: every built-in metric has all of them, and a plugin's metric what it has."""

from __future__ import annotations

import doctest
import sys
from dataclasses import fields

import pytest

from xent_metrics import RatioMetric, list_metrics
from xent_metrics.explain.metrics import FAMILIES, SCORES, by_family, is_built_in, metric_facts, needed_scores
from xent_metrics.metrics import BitsPerByte, BytePerplexity, CrossEntropy, KLDivergence, MaximumCalibrationError
from xent_metrics.plugins import Plugins, use_plugins

with use_plugins(Plugins()):
    BUILT_IN = {name: metric for family in by_family().values() for metric in family for name in [metric.name]}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_metric_has_all_facts_of_its_own(name):
    metric = BUILT_IN[name]
    facts = metric_facts(metric)
    for attribute in ("formula", "latex", "use_when", "hides"):
        assert vars(metric).get(attribute), f"{metric.__name__} has no {attribute} of its own"
    assert [
        f.name for f in fields(facts) if not getattr(facts, f.name) and f.name not in ("details", "options", "better")
    ] == []
    assert facts.use_when.endswith(".")
    assert facts.hides.endswith(".")
    assert set(facts.needs) <= set(SCORES)
    assert [option.name for option in facts.options if not option.meaning or "as for" in option.meaning] == []
    assert any(facts.hosts.values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_example_runs_by_itself(name):
    example = metric_facts(BUILT_IN[name]).example
    found = doctest.DocTestParser().get_doctest(example, {}, name, None, None)
    printed = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=printed.append)
    assert "".join(printed) == ""


def test_every_registered_metric_is_in_one_family():
    found = [metric.name for family in by_family().values() for metric in family]
    assert sorted(found) == list_metrics()
    assert set(by_family()) == {*FAMILIES, "Plugins"}
    assert set(BUILT_IN) == {metric.name for family in FAMILIES for metric in by_family()[family]}


def test_options_have_the_meaning_of_the_metric_that_they_are_said_to_be_as_for():
    [table] = metric_facts(BytePerplexity).options
    assert table.name == "token_bytes"
    assert table == metric_facts(BitsPerByte).options[0]
    meanings = {option.name: option.meaning for option in metric_facts(MaximumCalibrationError).options}
    assert meanings["num_bins"] == "the number of bins, M."
    assert meanings["binning"].startswith('"width" for bins (b/M, (b + 1)/M], the last of which')


def test_defaults_are_python():
    assert [(option.name, option.default) for option in metric_facts(CrossEntropy).options] == [
        ("unit", '"nats"'),
        ("label_smoothing", "0.0"),
        ("class_weight", "None"),
    ]


@pytest.mark.parametrize(
    ("name", "any_model", "choices", "engines", "ours"),
    [
        ("bits_per_byte", True, False, True, True),
        ("word_perplexity", True, False, True, True),
        ("cross_entropy", False, True, True, True),
        ("brier_score", False, True, False, True),
        ("binary_cross_entropy", False, False, False, False),
    ],
)
def test_hosts_are_those_that_give_the_scores(name, any_model, choices, engines, ours):
    able = list(metric_facts(BUILT_IN[name]).hosts.values())
    assert able == [name != "word_perplexity", any_model, choices, engines, ours]


def test_metrics_of_two_models_are_those_of_compare_models():
    assert all(metric_facts(KLDivergence).hosts.values())
    assert not metric_facts(BUILT_IN["soft_cross_entropy"]).hosts["`xent compare-models`"]


@pytest.mark.parametrize("host", ["lm_eval", "tqdm"])
def test_a_host_that_is_not_installed_is_left_out(host, monkeypatch):
    gone = {"lm_eval": "xent_metrics.hosts.lm_eval", "tqdm": "xent_metrics.hosts.model_pair"}[host]
    for module in [module for module in sys.modules if module.startswith(gone)]:
        monkeypatch.delitem(sys.modules, module)
    if host == "lm_eval":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert list(metric_facts(CrossEntropy).hosts) == ["PyTorch, Lightning and the Trainer"]
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert list(metric_facts(KLDivergence).hosts) == ["PyTorch, with the logits of both models"]


def test_a_plugins_metric_has_what_it_says():
    class Bare(RatioMetric):
        name = "bare"

        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)

        def per_token(self, scores):
            return scores.nll

    facts = metric_facts(Bare)
    assert (facts.formula, facts.use_when, facts.example, facts.hosts) == ("", "", "", {})
    assert [(option.name, option.default, option.meaning) for option in facts.options] == [("table", "required", "")]
    assert not is_built_in(Bare)
    assert needed_scores(Bare) == ["nll"]
