"""Metrics rebuilt from a run: ours with their units, lm-eval's own if the samples determine them."""

from __future__ import annotations

import copy

import pytest
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from support.logged_runs import TEXTS, WarmerLM

from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.hosts.lm_eval import XentTask


def test_units_over_choices_are_per_question(tmp_path):
    question = {"question": "Which?", "choices": ["no one", "this", "that"], "gold": 1}
    listed = [
        {"metric": "brier_score"},
        {"metric": "cross_entropy", "unit": "bits", "over": "choices"},
        {"metric": "token_accuracy", "over": "choices"},
        {"metric": "cross_entropy", "over": "gold", "name": "of_gold"},
    ]
    task = XentTask(config("multiple_choice", [question, question], listed))
    saved(evaluate(task, ScoredBigramLM()), tmp_path)
    units = {name: metric.value_unit for name, metric in read_run(tmp_path).tasks["t"].metrics.items()}
    assert units == {
        "brier_score": "squared error per question",
        "cross_entropy": "bits per question",
        "token_accuracy": "share of questions",
        "of_gold": "nats per token",
    }


class BackwardsLM(ScoredBigramLM):
    """Prefers what the bigram model dislikes."""

    def _continuation(self, context, continuation):
        loglikelihood, _ = super()._continuation(context, continuation)
        return (-100 - loglikelihood, False)


def test_lm_evals_own_metrics_are_compared_if_the_samples_determine_them(tmp_path):
    """acc is a mean, the weighted perplexities are ratios; mcc is neither and is refused."""
    questions = [{"question": f"q{n}", "choices": [" a", " bb", f" {n}"], "gold": 0} for n in range(12)]
    metric_list = [{"metric": "acc"}, {"metric": "mcc"}]
    for name, temperature in (("a", 1.0), ("b", 3.0)):
        task = XentTask(config("multiple_choice", questions, copy.deepcopy(metric_list)))
        saved(evaluate(task, ScoredBigramLM() if name == "a" else BackwardsLM()), tmp_path / name)
        stock = [
            {"metric": metric, "aggregation": how, "higher_is_better": False}
            for metric, how in (("bits_per_byte", "bits_per_byte"), ("word_perplexity", "weighted_perplexity"))
        ]
        texts = ConfigurableTask(config=config("loglikelihood_rolling", [{"text": t} for t in TEXTS], stock))
        saved(evaluate(texts, WarmerLM(temperature)), tmp_path / f"rolling {name}")
    rows = {row.metric: row for row in compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"))}
    assert rows["acc"].result.difference == rows["acc"].value_b - rows["acc"].value_a != 0
    assert rows["mcc"].reason == "the metric is lm-eval's own and is not the mean of the logged samples"
    runs = [read_run(tmp_path / f"rolling {name}") for name in "ab"]
    rows = {row.metric: row for row in compare_runs(*runs, num_resamples=99)}
    for name, row in rows.items():
        assert row.result.value_b == pytest.approx(runs[1].tasks["t"].values[name], rel=1e-12)
        assert row.result.better == "B"
