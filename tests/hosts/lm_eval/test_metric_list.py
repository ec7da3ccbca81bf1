"""A task's metric_list: ours beside lm-eval's, and every mistake found before data are loaded."""

import math

import pytest
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import CHOICES, PAIRS, ROLLING, ScoredBigramLM, config, entries, evaluate, values

from xent_metrics.errors import MetricOptionError, MissingScoreError, UnknownMetricError
from xent_metrics.hosts.lm_eval import XentTask


def test_one_metric_twice_under_two_names():
    listed = [{"metric": "cross_entropy"}, {"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}]
    results = evaluate(XentTask(config("loglikelihood_rolling", ROLLING, listed)), ScoredBigramLM())
    found = values(results)
    assert found["bits_per_token"] == pytest.approx(found["cross_entropy"] / math.log(2), rel=1e-15)
    assert results["configs"]["t"]["metric_list"] == listed
    assert results["higher_is_better"]["t"]["bits_per_token"] is False


def test_lm_evals_perplexity_goes_on_working_beside_ours():
    theirs = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    listed = [theirs, {"metric": "acc"}, {"metric": "perplexity", "name": "per_token"}]
    found = values(evaluate(XentTask(config("loglikelihood", PAIRS, listed)), ScoredBigramLM()))
    alone = values(evaluate(ConfigurableTask(config=config("loglikelihood", PAIRS, [theirs])), ScoredBigramLM()))
    assert found["perplexity"] == alone["perplexity"]
    per_token = values(evaluate(XentTask(config("loglikelihood", PAIRS, entries("perplexity"))), ScoredBigramLM()))
    assert found["per_token"] == per_token["perplexity"] != alone["perplexity"]
    with pytest.raises(MetricOptionError, match="perplexity appears twice"):
        XentTask(config("loglikelihood", PAIRS, [theirs, {"metric": "perplexity"}]))


@pytest.mark.parametrize(
    ("output_type", "entry", "error", "said"),
    [
        ("loglikelihood_rolling", {"metric": "bits_per_bite"}, UnknownMetricError, "Did you mean 'bits_per_byte'"),
        (
            "loglikelihood_rolling",
            {"metric": "acc"},
            UnknownMetricError,
            "lm-eval's own in loglikelihood_rolling: none",
        ),
        ("multiple_choice", {"metric": "acc_nrom"}, UnknownMetricError, "Did you mean 'acc_norm'"),
        ("multiple_choice", {"metric": "cross_entropi", "over": "choices"}, UnknownMetricError, "'cross_entropy'"),
        ("multiple_choice", {"metric": lambda items: 0}, UnknownMetricError, "never calls a !function metric"),
        ("generate_until", {"metric": "exact_mach"}, UnknownMetricError, "Did you mean 'exact_match'"),
        ("loglikelihood", {"metric": "cross_entropy", "unti": "bits"}, MetricOptionError, "Did you mean 'unit'"),
        ("loglikelihood", {"metric": "cross_entropy", "unit": "bites"}, MetricOptionError, '"nats" or "bits"'),
        ("loglikelihood", {"metric": "cross_entropy", "ignore_index": 104}, MetricOptionError, "remove ignore_index"),
        ("loglikelihood", {"metric": "cross_entropy", "over": "gold"}, MetricOptionError, "over belongs to"),
        ("multiple_choice", {"metric": "cross_entropy", "over": "golds"}, MetricOptionError, "got 'golds'"),
        ("loglikelihood", {"metric": "cross_entropy", "aggregation": "mean"}, MetricOptionError, "remove aggregation"),
        ("loglikelihood", {"metric": "perplexity", "aggregation": "perplexty"}, MetricOptionError, "'perplexity'"),
        ("loglikelihood", {"metric": "perplexity", "higher_is_better": False}, MetricOptionError, "remove higher_is"),
        ("multiple_choice", {"metric": "acc", "aggregation": "maen"}, MetricOptionError, "Did you mean 'mean'"),
        ("multiple_choice", {"metric": "acc", "agregation": "mean"}, MetricOptionError, "remove agregation. Did you"),
        ("multiple_choice", {"metric": "bits_per_byte", "over": "choices"}, MissingScoreError, "over: gold has it"),
        (
            "multiple_choice",
            {"metric": "cross_entropy", "label_smoothing": 0.1},
            MissingScoreError,
            "metric cross_entropy: .*over: choices has the whole",
        ),
        (
            "multiple_choice",
            {"metric": "kl_divergence", "over": "choices"},
            MissingScoreError,
            "task t, metric kl_divergence: .*no lm-eval model gives it",
        ),
        ("loglikelihood", {"metric": "cross_entropy", "label_smoothing": 0.1}, MissingScoreError, "no lm-eval model"),
        ("loglikelihood", {"metric": "cross_entropy", "name": "a,b"}, MetricOptionError, "without spaces and commas"),
        ("loglikelihood", {"metric": "cross_entropy", "name": "acc"}, MetricOptionError, "acc appears twice"),
        ("loglikelihood", "cross_entropy", MetricOptionError, "got 'cross_entropy'"),
        ("loglikelihood", {"metric": "bits_per_byte", "token_bytes": 3}, Exception, "task t, metric bits_per_byte"),
    ],
)
def test_mistakes_are_found_before_data_are_loaded(output_type, entry, error, said):
    def never(**_):
        raise AssertionError("data were loaded")

    listed = [entry, {"metric": "acc"}] if output_type == "loglikelihood" else [entry]
    with pytest.raises(error, match=said.replace("?", r"\?")) as raised:
        XentTask(config(output_type, CHOICES, listed) | {"custom_dataset": never})
    assert "task t" in str(raised.value)
